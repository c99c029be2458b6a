//! Goal: what is written is whole or not there, and nothing of a pod outlives it. Method: temporary
//! folders.

use super::*;

#[test]
fn a_file_may_be_written_from_several_threads_at_once() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("x");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..20).for_each(|_| write_atomic(&path, b"same").unwrap()));
        }
    });
    assert_eq!(std::fs::read(&path).unwrap(), b"same");
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn what_is_in_memory_goes_with_its_pod_and_is_found_by_the_next_agent() {
    let (root, memory) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let open = || {
        let dirs = Dirs::create(root.path().to_owned()).unwrap();
        dirs.with_memory(Some(memory.path().to_owned()))
    };
    let (one, two) = (open().pod("u1"), open().pod("u2"));
    for pod in [&one, &two] {
        assert!(pod.keep_in_memory("token", "t", &"x").await.is_err(), "it was never made");
        pod.create().unwrap();
        pod.keep_in_memory("token", "t", &"x").await.unwrap();
        assert!(pod.volume("v").starts_with(root.path()));
        let folder = pod.volume_in_memory("v").unwrap();
        pod.make(&folder).unwrap();
        assert_eq!(pod.volume("v"), folder);
    }
    one.remove().unwrap();
    std::fs::remove_dir(root.path().join("pods/u2")).unwrap();
    std::fs::create_dir_all(root.path().join("pods/u3")).unwrap();
    std::fs::create_dir_all(memory.path().join("pods/u3")).unwrap();
    let _next = open();
    let left: Vec<_> = std::fs::read_dir(memory.path().join("pods"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(left, ["u3"]);
}

#[tokio::test]
async fn what_is_written_is_read_and_a_torn_file_is_nothing() {
    let root = tempfile::tempdir().unwrap();
    let dirs = Dirs::create(root.path().join("agent")).unwrap();
    let pod = dirs.pod("u1");
    let ips = [IpAddr::from([10, 42, 0, 7]), "fd00:42::7".parse().unwrap()];
    let backlog = Backlog::default();
    pod.keep_addresses_later(&ips, &backlog);
    pod.create().unwrap();
    pod.write_down(backlog).unwrap();
    assert_eq!(pod.read_addresses(), ips);
    pod.write_pod(&Pod::default()).unwrap();
    assert_eq!(pod.read_pod(), Some(Pod::default()));
    std::fs::write(root.path().join("agent/pods/u1/pod.json"), "{\"meta").unwrap();
    assert_eq!(pod.read_pod(), None);
    assert_eq!(dirs.all_pods().unwrap().len(), 1);
    pod.remove().unwrap();
    pod.remove().unwrap();
    assert!(dirs.all_pods().unwrap().is_empty());
}

#[test]
fn nothing_of_a_pod_comes_back_after_its_removal() {
    let root = tempfile::tempdir().unwrap();
    let dirs = Dirs::create(root.path().join("agent")).unwrap();
    let pod = dirs.pod("u1");
    assert!(pod.keep("secret", "s", &"x").is_err(), "it was never made");
    pod.create().unwrap();
    pod.keep("secret", "s", &"x").unwrap();
    pod.make(&pod.volume("v")).unwrap();
    assert!(pod.make(root.path()).is_err());
    pod.remove().unwrap();
    assert!(pod.keep("secret", "s", &"x").is_err());
    assert!(pod.write_new_pod(&Pod::default()).is_err());
    let backlog = Backlog::default();
    pod.keep_addresses_later(&[], &backlog);
    assert!(pod.write_down(backlog).is_err());
    assert!(pod.make(&pod.volume("v")).is_err());
    assert_eq!(std::fs::read_dir(root.path().join("agent/pods")).unwrap().count(), 0);
}

#[test]
fn a_removal_that_a_power_cut_ended_is_gone_on_with() {
    let root = tempfile::tempdir().unwrap();
    let dirs = Dirs::create(root.path().join("agent")).unwrap();
    let left = root.path().join("agent/pods/.gone-u1");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("pod.json"), "{}").unwrap();
    assert!(dirs.all_pods().unwrap().is_empty());
    dirs.remove_gone().unwrap();
    assert!(!left.exists());
}

#[test]
fn names_cannot_lead_out_of_the_folder() {
    for (name, safe) in [("a/b", "a_b"), ("..", "_.."), ("", "_"), ("app", "app")] {
        assert_eq!(file_name(name), safe);
    }
}

#[test]
fn secrets_are_sealed_on_the_disk_and_those_of_before_are_from_now_on() {
    let root = tempfile::tempdir().unwrap();
    let dirs = Dirs::create(root.path().to_owned()).unwrap();
    let pod = dirs.pod("u1");
    pod.create().unwrap();
    let bytes = |kind: &str| std::fs::read(pod.object_file(kind, "s")).unwrap();
    for (kind, is_sealed) in [("secret", true), ("token", true), ("configmap", false)] {
        pod.keep(kind, "s", &"hush").unwrap();
        assert_eq!(pod.kept::<String>(kind, "s").as_deref(), Some("hush"));
        assert_eq!(sealed::is_sealed(&bytes(kind)), is_sealed, "{kind}");
    }
    // The next agent reads it, another pod does not.
    let next = Dirs::create(root.path().to_owned()).unwrap();
    assert_eq!(next.pod("u1").kept::<String>("secret", "s").as_deref(), Some("hush"));
    let other = next.pod("u2");
    other.create().unwrap();
    std::fs::create_dir_all(root.path().join("pods/u2/objects")).unwrap();
    std::fs::copy(pod.object_file("secret", "s"), other.object_file("secret", "s")).unwrap();
    assert_eq!(other.kept::<String>("secret", "s"), None);
    // One of an agent that did not seal.
    std::fs::write(pod.object_file("secret", "s"), "\"old\"").unwrap();
    assert_eq!(pod.kept::<String>("secret", "s").as_deref(), Some("old"));
    assert!(sealed::is_sealed(&bytes("secret")));
    assert_eq!(pod.kept::<String>("secret", "s").as_deref(), Some("old"));
}
