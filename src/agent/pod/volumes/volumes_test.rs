//! Volumes and mounts as a container's start makes them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use edgeorc_runtime::{Mount, VolumeLimit};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::agent::dirs::{Dirs, make_private};
use crate::agent::pod::env::MountedImage;
use crate::agent::pod::volumes::claim::{Claim, Place};

struct Bench {
    _root: tempfile::TempDir,
    dirs: Dirs,
    sources: Sources,
}

impl Bench {
    fn new(data: Value) -> Self {
        let root = tempfile::tempdir().unwrap();
        let dirs = Dirs::create(root.path().to_owned()).unwrap();
        dirs.pod("u").create().unwrap();
        let mut bench = Self { _root: root, dirs, sources: Sources::default() };
        bench.set(data);
        bench
    }

    fn set(&mut self, data: Value) {
        let map = serde_json::from_value(json!({"data": data})).unwrap();
        self.sources.config_maps = BTreeMap::from([("c".into(), Some(map))]);
    }

    fn dir(&self) -> PodDir {
        self.dirs.pod("u")
    }

    fn start(&self, volume: &Value, mounts: Value) -> Result<Vec<Mount>, String> {
        let pod = pod(volume, mounts);
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let env = [("POD_NAME".to_owned(), "web-1".to_owned())];
        write_volumes(&pod, &self.dir(), &self.sources)
            .and_then(|()| super::mounts(&pod, container, &self.dir(), &self.sources, &env))
            .map_err(|err| err.to_string())
    }
}

fn pod(volume: &Value, mounts: Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"labels": {"a": "1"}}, "spec": {
        "containers": [{"name": "app", "volumeMounts": mounts}], "volumes": [volume]}}))
    .unwrap()
}

fn read(mount: &Mount, path: &str) -> String {
    fs::read_to_string(mount.host_path.join(path)).unwrap()
}

#[test]
fn a_config_map_is_read_only_and_keys_that_went_away_go() {
    let mut bench = Bench::new(json!({"a": "1", "b": "2"}));
    let volume = json!({"name": "v", "configMap": {"name": "c"}});
    let at_data = json!([{"name": "v", "mountPath": "/data"}]);
    let mounts = bench.start(&volume, at_data.clone()).unwrap();
    assert!(mounts[0].is_read_only);
    assert_eq!((mounts[0].guest_path.as_str(), read(&mounts[0], "b").as_str()), ("/data", "2"));
    bench.set(json!({"a": "3"}));
    let changed = update_volumes(&pod(&volume, at_data), &bench.dir(), &bench.sources).0;
    assert_eq!(changed, ["v"]);
    // The mount of the running container shows the new content.
    assert_eq!(read(&mounts[0], "a"), "3");
    assert!(!mounts[0].host_path.join("b").exists());
}

#[test]
fn what_is_optional_goes_with_its_object_and_what_is_needed_stays() {
    let mut bench = Bench::new(json!({"a": "1"}));
    let pod: Pod = serde_json::from_value(json!({"metadata": {"labels": {"l": "1"}}, "spec": {
        "containers": [{"name": "app"}], "volumes": [
            {"name": "needed", "configMap": {"name": "c"}},
            {"name": "optional", "configMap": {"name": "c", "optional": true}},
            {"name": "own", "downwardAPI": {"items": [
                {"path": "l", "fieldRef": {"fieldPath": "metadata.labels['l']"}}]}}]}}))
    .unwrap();
    write_volumes(&pod, &bench.dir(), &bench.sources).unwrap();
    let mut later = pod;
    later.metadata.labels = Some(BTreeMap::from([("l".to_owned(), "2".to_owned())]));
    bench.sources.config_maps = BTreeMap::from([("c".into(), None)]);
    let (changed, failed) = update_volumes(&later, &bench.dir(), &bench.sources);
    assert_eq!(changed, ["optional", "own"]);
    assert_eq!(failed.unwrap().to_string(), "configmap \"c\" not found");
    let at = |path: &str| bench.dir().volume(path);
    assert!(at("needed").join("a").exists() && !at("optional").join("a").exists());
    assert_eq!(fs::read_to_string(at("own").join("l")).unwrap(), "2");
}

#[test]
fn a_sub_path_may_come_later() {
    let mut bench = Bench::new(json!({"a": "1"}));
    let pod = pod(
        &json!({"name": "v", "configMap": {"name": "c"}}),
        json!([{"name": "v", "mountPath": "/b", "subPath": "b"}]),
    );
    let container = &pod.spec.as_ref().unwrap().containers[0];
    let start = |bench: &Bench| {
        write_volumes(&pod, &bench.dir(), &bench.sources).unwrap();
        mounts(&pod, container, &bench.dir(), &bench.sources, &[])
    };
    let missing = start(&bench).unwrap_err();
    assert!(matches!(missing, ConfigError::Unavailable(_)), "tried again: {missing}");
    bench.set(json!({"a": "1", "b": "2"}));
    start(&bench).unwrap();
}

#[test]
fn a_sub_path_shows_the_version_of_its_start_for_ever() {
    let mut bench = Bench::new(json!({"a": "1"}));
    let volume = json!({"name": "v", "configMap": {"name": "c",
        "items": [{"key": "a", "path": "dir/a"}]}});
    let wanted = json!([
        {"name": "v", "mountPath": "/d", "subPath": "dir"},
        {"name": "v", "mountPath": "/etc/app.conf", "subPath": "dir/a"},
    ]);
    let mounts = bench.start(&volume, wanted.clone()).unwrap();
    assert_eq!((read(&mounts[0], "a"), read(&mounts[1], "app.conf")), ("1".into(), "1".into()));
    assert_eq!(mounts[1].guest_path, "/etc");
    assert!(mounts[1].is_read_only);
    let mut names: Vec<_> = fs::read_dir(&mounts[1].host_path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["app.conf", "hostname", "hosts", "resolv.conf"]);
    assert_eq!(mounts.len(), 2);
    bench.set(json!({"a": "2"}));
    update_volumes(&pod(&volume, wanted.clone()), &bench.dir(), &bench.sources);
    assert_eq!(read(&mounts[1], "app.conf"), "1");
    // The next start has the new one.
    let mounts = bench.start(&volume, wanted).unwrap();
    assert_eq!((read(&mounts[0], "a"), read(&mounts[1], "app.conf")), ("2".into(), "2".into()));
}

#[test]
fn a_file_of_an_empty_dir_is_shared_for_writing() {
    let bench = Bench::new(json!({}));
    let volume = json!({"name": "v", "emptyDir": {"sizeLimit": "1Mi", "medium": "Memory"}});
    let folder = json!([{"name": "v", "mountPath": "/data"}]);
    let whole = bench.start(&volume, folder).unwrap();
    let limit = whole[0].limit.as_ref().map(|limit| limit.bytes_max);
    assert_eq!((limit, whole[0].is_read_only), (Some(1 << 20), false));
    fs::write(whole[0].host_path.join("state"), "a").unwrap();
    let file = |more: Value| {
        let mut list = vec![json!({"name": "v", "mountPath": "/run/state", "subPath": "state"})];
        list.extend(more.as_array().unwrap().iter().cloned());
        Value::Array(list)
    };
    let alone = bench.start(&volume, file(json!([]))).unwrap();
    assert_eq!(alone[0].guest_path, "/run");
    fs::write(alone[0].host_path.join("state"), "b").unwrap();
    assert_eq!(read(&whole[0], "state"), "b");
    let read_only =
        json!([{"name": "v", "mountPath": "/run/x", "subPath": "state", "readOnly": true}]);
    assert!(bench.start(&volume, file(read_only)).unwrap_err().contains("all be mounted readOnly"));
    let over = json!([{"name": "v", "mountPath": "/run"}]);
    assert!(bench.start(&volume, file(over)).unwrap_err().contains("another volume is mounted"));
}

#[test]
fn a_sub_path_is_made_expanded_and_never_leaves_the_volume() {
    let bench = Bench::new(json!({}));
    let volume = json!({"name": "v", "emptyDir": {}});
    let mounts = bench
        .start(
            &volume,
            json!([{"name": "v", "mountPath": "/d", "subPathExpr": "logs/$(POD_NAME)"}]),
        )
        .unwrap();
    assert!(bench.dir().volume("v").join("logs/web-1").is_dir());
    assert!(mounts[0].host_path.is_dir());
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), bench.dir().volume("v").join("out")).unwrap();
    for mount in [
        json!({"name": "v", "mountPath": "/d", "subPath": "out/made"}),
        json!({"name": "v", "mountPath": "/d", "subPath": "out"}),
        json!({"name": "v", "mountPath": "/d", "subPath": "../u2"}),
        json!({"name": "v", "mountPath": "/d", "subPathExpr": "$(UNSET)"}),
        json!({"name": "other", "mountPath": "/d"}),
    ] {
        assert!(bench.start(&volume, json!([mount.clone()])).is_err(), "{mount}");
    }
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_folder_stays_mounted_when_a_guest_puts_a_link_in_its_place() {
    let bench = Bench::new(json!({}));
    let volume = json!({"name": "v", "emptyDir": {}});
    let mounts =
        bench.start(&volume, json!([{"name": "v", "mountPath": "/d", "subPath": "a"}])).unwrap();
    let folder = bench.dir().volume("v");
    fs::rename(folder.join("a"), folder.join("b")).unwrap();
    symlink("/etc", folder.join("a")).unwrap();
    fs::write(folder.join("b/mine"), "x").unwrap();
    assert_eq!(read(&mounts[0], "mine"), "x");
}

#[test]
fn labels_in_a_file_follow_the_pod() {
    let bench = Bench::new(json!({}));
    let volume = json!({"name": "v", "downwardAPI": {"items": [
        {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}});
    let wanted = json!([{"name": "v", "mountPath": "/d"}]);
    let mounts = bench.start(&volume, wanted.clone()).unwrap();
    assert_eq!(read(&mounts[0], "labels"), "a=\"1\"");
    let mut pod = pod(&volume, wanted);
    pod.metadata.labels.as_mut().unwrap().insert("b".into(), "2".into());
    update_volumes(&pod, &bench.dir(), &bench.sources);
    assert_eq!(read(&mounts[0], "labels"), "a=\"1\"\nb=\"2\"");
}

#[test]
fn a_claims_folder_outlives_the_pod_and_may_be_read_only() {
    let mut bench = Bench::new(json!({}));
    let folder = bench.dirs.persistent_volume("pvc-1");
    make_private(&folder).unwrap();
    let place = Place::Own(folder.clone());
    let claim = Claim { uid: "1".into(), place, is_read_only: false, bytes_max: Some(1 << 20) };
    bench.sources.claims = BTreeMap::from([("data".into(), claim)]);
    let volume = |read_only: bool| json!({"name": "v", "persistentVolumeClaim": {"claimName": "data", "readOnly": read_only}});
    let at = json!([{"name": "v", "mountPath": "/d"}]);
    let mounts = bench.start(&volume(false), at.clone()).unwrap();
    let limit = VolumeLimit { root: folder.clone(), bytes_max: 1 << 20 };
    assert_eq!(mounts[0].limit, Some(limit));
    fs::write(mounts[0].host_path.join("x"), "kept").unwrap();
    bench.dir().remove().unwrap();
    assert_eq!(fs::read_to_string(folder.join("x")).unwrap(), "kept");
    bench.dir().create().unwrap();
    assert!(bench.start(&volume(true), at).unwrap()[0].is_read_only);
}

#[test]
fn types_that_the_node_does_not_have_are_named() {
    let bench = Bench::new(json!({}));
    for volume in [
        json!({"name": "v", "nfs": {"server": "s", "path": "/"}}),
        json!({"name": "v", "emptyDir": {"medium": "HugePages"}}),
        json!({"name": "v", "configMap": {"name": "absent"}}),
        json!({"name": "v", "hostPath": {"path": "/etc"}}),
    ] {
        let wanted = json!([{"name": "v", "mountPath": "/d"}]);
        assert!(bench.start(&volume, wanted).is_err(), "{volume}");
    }
}

#[test]
fn every_container_has_the_pods_files_in_etc_unless_it_brings_its_own() {
    let bench = Bench::new(json!({}));
    let volume = json!({"name": "v", "emptyDir": {}});
    let etc = |mounts: Value| {
        let mounts = bench.start(&volume, mounts).unwrap();
        let found = mounts.into_iter().filter(|mount| mount.guest_path == "/etc");
        found.map(|mount| (mount.is_read_only, mount)).collect::<Vec<_>>()
    };
    let plain = etc(json!([]));
    assert_eq!((plain.len(), plain[0].0), (1, true));
    assert!(read(&plain[0].1, "hosts").starts_with("# Kubernetes-managed hosts file."));
    assert!(read(&plain[0].1, "resolv.conf").contains("options ndots:5"));
    // A start that changes nothing writes nothing.
    let stamp = || fs::metadata(bench.dir().etc().join("hosts")).unwrap().modified().unwrap();
    let before = stamp();
    etc(json!([]));
    assert_eq!(stamp(), before);
    fs::write(bench.dir().volume("v").join("own"), "mine").unwrap();
    let own =
        etc(json!([{"name": "v", "mountPath": "/etc/hosts", "subPath": "own", "readOnly": true}]));
    assert_eq!((own.len(), own[0].0), (1, true));
    assert_eq!(read(&own[0].1, "hosts"), "mine");
    assert!(read(&own[0].1, "resolv.conf").contains("ndots"));
    let writable = etc(json!([{"name": "v", "mountPath": "/etc/hosts", "subPath": "own"}]));
    assert_eq!((writable.len(), writable[0].0), (1, false));
    assert!(!writable[0].1.host_path.join("resolv.conf").exists());
    let whole = etc(json!([{"name": "v", "mountPath": "/etc/"}]));
    assert!(whole.is_empty(), "the folder of the container's own is there as `/etc/`");
    let ssl = etc(json!([{"name": "v", "mountPath": "/etc/ssl"}]));
    assert_eq!(ssl.len(), 1);
}

#[test]
fn an_image_is_mounted_read_only_and_its_links_lead_nowhere() {
    let mut bench = Bench::new(json!({}));
    let outside = tempfile::tempdir().unwrap();
    let folder = bench.dirs.image_tree("00");
    fs::create_dir_all(folder.join("models/a")).unwrap();
    fs::write(folder.join("models/a/weights"), "w").unwrap();
    symlink(outside.path(), folder.join("out")).unwrap();
    let volume = json!({"name": "v", "image": {"reference": "r:v1"}});
    let at = |sub: &str| json!([{"name": "v", "mountPath": "/m/x", "subPath": sub}]);
    assert!(bench.start(&volume, at("models")).unwrap_err().contains("not here"));
    let image = MountedImage { folder: folder.clone(), id: "r@sha256:00".into() };
    bench.sources.images = BTreeMap::from([("v".into(), image)]);
    for sub in ["", "models", "models/a"] {
        let mounts = bench.start(&volume, at(sub)).unwrap();
        assert!(mounts[0].is_read_only && mounts[0].limit.is_none(), "{sub}");
    }
    let file = bench.start(&volume, at("models/a/weights")).unwrap();
    assert_eq!((file[0].guest_path.as_str(), read(&file[0], "x").as_str()), ("/m", "w"));
    assert!(file[0].is_read_only);
    for sub in ["out", "out/x", "none", "models/../out"] {
        assert!(bench.start(&volume, at(sub)).is_err(), "{sub}");
    }
    let shown = shown_mounts(&pod(&volume, at("")).spec.unwrap().containers[0], &bench.sources);
    let shown = serde_json::to_value(shown).unwrap();
    assert_eq!(
        shown,
        json!([{"name": "v", "mountPath": "/m/x",
            "volumeStatus": {"image": {"imageRef": "r@sha256:00"}}}])
    );
}

#[test]
fn files_for_writing_in_one_folder_share_one_limit() {
    let bench = Bench::new(json!({}));
    let volumes =
        json!([{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "w", "emptyDir": {}}]);
    let file = |name: &str, at: &str| json!({"name": name, "mountPath": at, "subPath": "f"});
    let start = |mounts: Value| {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "app", "volumeMounts": mounts}], "volumes": volumes}}))
        .unwrap();
        write_volumes(&pod, &bench.dir(), &bench.sources).unwrap();
        for name in ["v", "w"] {
            fs::write(bench.dir().volume(name).join("f"), "").unwrap();
        }
        let container = &pod.spec.as_ref().unwrap().containers[0];
        super::mounts(&pod, container, &bench.dir(), &bench.sources, &[])
    };
    let limited = start(json!([file("v", "/run/a")])).unwrap();
    let root = bench.dir().volume("v");
    assert_eq!(limited[0].limit, Some(VolumeLimit { root, bytes_max: 1 << 20 }));
    let mixed = start(json!([file("v", "/run/a"), file("w", "/run/b")]));
    assert!(mixed.unwrap_err().to_string().contains("of one volume"));
}
