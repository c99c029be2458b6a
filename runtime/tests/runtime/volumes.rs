//! Mounts as the node's agent makes them: held open, with the layout whose content is swapped.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgeorc_runtime::Mount;

use crate::support::{Node, exit, wat};

/// WASI p1: prints the file `key` of the first preopen; exits with the error of opening it.
const PRINTS_KEY: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open" (func $path_open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_read"
        (func $fd_read (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write"
        (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 8) "\00\01\00\00\40\00\00\00")
    (data (i32.const 64) "key")
    (func (export "_start") (local $error i32)
        (local.set $error (call $path_open (i32.const 3) (i32.const 1) (i32.const 64) (i32.const 3)
            (i32.const 0) (i64.const 2) (i64.const 0) (i32.const 0) (i32.const 100)))
        (if (local.get $error) (then (call $proc_exit (local.get $error))))
        (drop (call $fd_read (i32.load (i32.const 100))
            (i32.const 8) (i32.const 1) (i32.const 104)))
        (i32.store (i32.const 12) (i32.load (i32.const 104)))
        (drop (call $fd_write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 104)))))"#;

/// WASI p1: makes the file `dir/new` in the first preopen; exits with the error.
const MAKES_FILE: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open" (func $path_open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 64) "dir/new")
    (func (export "_start")
        (call $proc_exit (call $path_open (i32.const 3) (i32.const 1) (i32.const 64) (i32.const 7)
            (i32.const 1) (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 100)))))"#;

/// A mount of `folder` through a handle that is held for the container.
fn held(folder: &Path, is_read_only: bool) -> Mount {
    let handle = OwnedFd::from(std::fs::File::open(folder).unwrap());
    Mount {
        host_path: PathBuf::from(format!("/proc/self/fd/{}", handle.as_raw_fd())),
        pin: Some(Arc::new(handle)),
        guest_path: "/data".to_owned(),
        is_read_only,
        limit: None,
    }
}

fn publish(folder: &Path, version: &str) {
    let data = folder.join(format!("..{version}"));
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("key"), format!("{version}\n")).unwrap();
    symlink(format!("..{version}"), folder.join("..next")).unwrap();
    std::fs::rename(folder.join("..next"), folder.join("..data")).unwrap();
}

#[tokio::test]
async fn a_guest_follows_the_link_to_the_present_version_and_no_link_out() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let root = tempfile::tempdir().unwrap();
    let folder = root.path().join("volume");
    std::fs::create_dir(&folder).unwrap();
    symlink("..data/key", folder.join("key")).unwrap();
    publish(&folder, "v1");
    let mount = held(&folder, true);
    // What has the name by now is not what was mounted.
    std::fs::rename(&folder, root.path().join("moved")).unwrap();
    let folder = root.path().join("moved");
    for version in ["v1", "v2"] {
        if version == "v2" {
            publish(&folder, version);
        }
        let mut config = node.container(version, wat(PRINTS_KEY));
        config.mounts = vec![mount.clone()];
        let container = pod.start(config).await.unwrap();
        assert_eq!(exit(&container).await.code, 0);
        assert_eq!(node.log(version), format!("stdout F {version}\n"));
    }
    std::fs::write(root.path().join("secret"), "secret").unwrap();
    std::fs::remove_file(folder.join("key")).unwrap();
    symlink("../secret", folder.join("key")).unwrap();
    let mut config = node.container("out", wat(PRINTS_KEY));
    config.mounts = vec![mount];
    let container = pod.start(config).await.unwrap();
    assert_ne!(exit(&container).await.code, 0);
    assert!(!node.log("out").contains("secret"));
}

#[tokio::test]
async fn a_read_only_mount_is_so_at_every_depth() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("dir")).unwrap();
    for (name, is_read_only) in [("reads", true), ("writes", false)] {
        let mut config = node.container(name, wat(MAKES_FILE));
        config.mounts = vec![held(root.path(), is_read_only)];
        let container = pod.start(config).await.unwrap();
        assert_eq!(exit(&container).await.code != 0, is_read_only, "{name}");
        assert_eq!(root.path().join("dir/new").exists(), !is_read_only, "{name}");
    }
}
