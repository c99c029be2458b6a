//! Volumes and mounts as a container's start makes them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;

use edgeorc_runtime::Mount;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use super::*;
use crate::agent::dirs::Dirs;
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
    let changed = update_volumes(&pod(&volume, at_data), &bench.dir(), &bench.sources).unwrap();
    assert_eq!(changed, ["v"]);
    // The mount of the running container shows the new content.
    assert_eq!(read(&mounts[0], "a"), "3");
    assert!(!mounts[0].host_path.join("b").exists());
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
    assert_eq!(fs::read_dir(&mounts[1].host_path).unwrap().count(), 1);
    bench.set(json!({"a": "2"}));
    update_volumes(&pod(&volume, wanted.clone()), &bench.dir(), &bench.sources).unwrap();
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
    update_volumes(&pod, &bench.dir(), &bench.sources).unwrap();
    assert_eq!(read(&mounts[0], "labels"), "a=\"1\"\nb=\"2\"");
}

#[test]
fn a_claims_folder_outlives_the_pod_and_may_be_read_only() {
    let mut bench = Bench::new(json!({}));
    let folder = bench.dirs.persistent_volume("pvc-1");
    make_private(&folder).unwrap();
    let claim = Claim { uid: "1".into(), place: Place::Own(folder.clone()), is_read_only: false };
    bench.sources.claims = BTreeMap::from([("data".into(), claim)]);
    let volume = |read_only: bool| json!({"name": "v", "persistentVolumeClaim": {"claimName": "data", "readOnly": read_only}});
    let at = json!([{"name": "v", "mountPath": "/d"}]);
    let mounts = bench.start(&volume(false), at.clone()).unwrap();
    fs::write(mounts[0].host_path.join("x"), "kept").unwrap();
    bench.dir().remove().unwrap();
    assert_eq!(fs::read_to_string(folder.join("x")).unwrap(), "kept");
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
