//! `/tmp`: what a container has of a file system of its own. It is empty at each start, as what a container
//! writes beside its volumes is lost with it, and counts as the container's ephemeral storage.

use std::io;

use edgeorc_runtime::Mount;
use k8s_openapi::api::core::v1::Container;

use crate::agent::dirs::{PodDir, remove_folder};

const GUEST_PATH: &str = "/tmp";

/// Adds the folder to the mounts, unless something is mounted there already or the container's root file
/// system may only be read.
pub(super) fn add(dir: &PodDir, spec: &Container, mounts: &mut Vec<Mount>) -> io::Result<()> {
    let context = spec.security_context.as_ref();
    let is_read_only = context.and_then(|context| context.read_only_root_filesystem) == Some(true);
    let is_there =
        |mount: &Mount| matches!(mount.guest_path.trim_end_matches('/'), "" | GUEST_PATH);
    if is_read_only || mounts.iter().any(is_there) {
        return Ok(());
    }
    let host_path = dir.scratch(&spec.name);
    remove_folder(&host_path)?;
    dir.make(&host_path)?;
    let guest_path = GUEST_PATH.to_owned();
    mounts.push(Mount { host_path, pin: None, guest_path, is_read_only: false, limit: None });
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::agent::dirs::Dirs;

    #[test]
    fn each_run_has_an_empty_folder_unless_there_is_another_or_nothing_may_be_written() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dirs::create(root.path().to_owned()).unwrap().pod("u");
        dir.create().unwrap();
        let spec = |more: serde_json::Value| -> Container {
            let mut spec = json!({"name": "app"});
            json_patch::merge(&mut spec, &more);
            serde_json::from_value(spec).unwrap()
        };
        let plain = spec(json!({}));
        for _ in 0..2 {
            let mut mounts = Vec::new();
            add(&dir, &plain, &mut mounts).unwrap();
            let [mount] = mounts.as_slice() else { panic!("{mounts:?}") };
            assert_eq!((mount.guest_path.as_str(), mount.is_read_only), ("/tmp", false));
            assert_eq!(std::fs::read_dir(&mount.host_path).unwrap().count(), 0);
            std::fs::write(mount.host_path.join("left"), "x").unwrap();
        }
        let volume = |guest_path: &str| Mount {
            host_path: root.path().to_owned(),
            pin: None,
            guest_path: guest_path.to_owned(),
            is_read_only: false,
            limit: None,
        };
        for (path, count) in [("/tmp", 1), ("/tmp/", 1), ("/", 1), ("/tmp/below", 2), ("/data", 2)]
        {
            let mut mounts = vec![volume(path)];
            add(&dir, &plain, &mut mounts).unwrap();
            assert_eq!(mounts.len(), count, "{path}");
        }
        let fixed = spec(json!({"securityContext": {"readOnlyRootFilesystem": true}}));
        let mut mounts = Vec::new();
        add(&dir, &fixed, &mut mounts).unwrap();
        assert!(mounts.is_empty());
    }
}
