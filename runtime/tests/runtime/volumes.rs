//! Mounts as the node's agent makes them: held open, with the layout whose content is swapped.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgeorc_runtime::{Mount, VolumeLimit};

use crate::support::{Node, app, exit, wat};

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

#[tokio::test]
async fn a_limit_holds_for_wasi_0_3_in_every_way_to_take_space() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let (limited, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut mount = held(limited.path(), false);
    let root = limited.path().to_owned();
    mount.limit = Some(VolumeLimit { root, bytes_max: 20_500 });
    let elsewhere = Mount { guest_path: "/other".to_owned(), ..held(other.path(), false) };
    let mut config = node.container("fills", app("probe-p3"));
    config.args.push("volume".to_owned());
    config.mounts = vec![mount, elsewhere];
    let container = pod.start(config).await.unwrap();
    assert_eq!(exit(&container).await.code, 0, "{}", node.log("fills"));
    let full = "Err(ErrorCode::InsufficientSpace)";
    let log = node.log("fills").replace("stdout F ", "");
    let lines: Vec<_> = log.lines().collect();
    assert_eq!(
        lines,
        [
            "write: ErrorCode::InsufficientSpace after 20000",
            format!("append: {full}").as_str(),
            "again: Ok(())",
            format!("longer: {full}").as_str(),
            "shorter: Ok(())",
            format!("far: {full}").as_str(),
            "append: Ok(())",
            // Sixteen at the least, one of which is the file.
            format!("names: {full} after 15").as_str(),
            "known: Ok(())",
            "move: Err(ErrorCode::CrossDevice)",
        ]
    );
    assert_eq!(std::fs::metadata(limited.path().join("file")).unwrap().len(), 1000);
}

/// WASI p1: makes a file far longer than it is allowed to be, in both ways; then makes files until it
/// may not. Exits with 1, 2 or 3 for what should have failed, else with the error of the last file.
const EVADES: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open" (func $path_open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_filestat_set_size"
        (func $set_size (param i32 i64) (result i32)))
    (import "wasi_snapshot_preview1" "fd_pwrite"
        (func $fd_pwrite (param i32 i32 i32 i64 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_close" (func $fd_close (param i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 8) "\40\00\00\00\04\00\00\00")
    (data (i32.const 64) "name")
    (func $open (result i32)
        (call $path_open (i32.const 3) (i32.const 0) (i32.const 64) (i32.const 4)
            (i32.const 1) (i64.const 0x400040) (i64.const 0) (i32.const 0) (i32.const 0)))
    (func (export "_start") (local $error i32) (local $made i32)
        (if (call $open) (then (call $proc_exit (i32.const 1))))
        (if (i32.eqz (call $set_size (i32.load (i32.const 0)) (i64.const 0x40000000)))
            (then (call $proc_exit (i32.const 2))))
        (if (i32.eqz (call $fd_pwrite (i32.load (i32.const 0)) (i32.const 8) (i32.const 1)
                (i64.const 0x40000000) (i32.const 4)))
            (then (call $proc_exit (i32.const 3))))
        (loop $next
            (drop (call $fd_close (i32.load (i32.const 0))))
            (local.set $made (i32.add (local.get $made) (i32.const 1)))
            (if (i32.gt_u (local.get $made) (i32.const 200)) (then (call $proc_exit (i32.const 4))))
            ;; The next name: two letters count.
            (i32.store8 (i32.const 64)
                (i32.add (i32.const 97) (i32.rem_u (local.get $made) (i32.const 20))))
            (i32.store8 (i32.const 65)
                (i32.add (i32.const 97) (i32.div_u (local.get $made) (i32.const 20))))
            (br_if $next (i32.eqz (local.tee $error (call $open)))))
        (call $proc_exit (local.get $error))))"#;
/// `ENOSPC` of WASI preview 1.
const NO_SPACE: i32 = 51;

#[tokio::test]
async fn holes_and_empty_files_do_not_get_round_a_limit() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let folder = tempfile::tempdir().unwrap();
    let mut mount = held(folder.path(), false);
    mount.limit = Some(VolumeLimit { root: folder.path().to_owned(), bytes_max: 1 << 16 });
    let mut config = node.container("evades", wat(EVADES));
    config.mounts.push(mount);
    let container = pod.start(config).await.unwrap();
    let exit = exit(&container).await;
    assert_eq!(exit.code, NO_SPACE, "{}", exit.message);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 16);
}
