//! Volumes of a pod as folders of the host, and their mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use edgeorc_runtime::{Mount, VolumeLimit};
use k8s_openapi::api::core::v1::{Container, KeyToPath, Pod, Volume};

use crate::agent::dirs::{PodDir, make_private, write_atomic};
use crate::agent::pod::env::{ConfigError, Sources};
use crate::agent::pod::plan::bytes;

/// Mode of a file that names none.
const MODE_DEFAULT: u32 = 0o644;

/// Makes the folders of all volumes of `pod` and writes what they hold.
pub(crate) fn write_volumes(pod: &Pod, dir: &PodDir, sources: &Sources) -> Result<(), ConfigError> {
    for volume in pod.spec.iter().flat_map(|s| s.volumes.iter().flatten()) {
        let folder = dir.volume(&volume.name);
        make_private(&folder)?;
        if let Some(wanted) = &volume.config_map {
            let is_optional = wanted.optional == Some(true);
            let map = sources.config_maps.get(&wanted.name).and_then(Option::as_ref);
            if map.is_none() && !is_optional {
                return Err(ConfigError::NoObject { kind: "configmap", name: wanted.name.clone() });
            }
            let mut content: BTreeMap<&str, &[u8]> = BTreeMap::new();
            for (key, value) in map.iter().flat_map(|m| m.data.iter().flatten()) {
                content.insert(key, value.as_bytes());
            }
            for (key, value) in map.iter().flat_map(|m| m.binary_data.iter().flatten()) {
                content.insert(key, &value.0);
            }
            let files = Files { kind: "ConfigMap", name: &wanted.name, is_optional, content };
            files.write(&folder, wanted.items.as_deref(), wanted.default_mode)?;
        } else if let Some(wanted) = &volume.secret {
            let name = wanted.secret_name.as_deref().unwrap_or_default();
            let is_optional = wanted.optional == Some(true);
            let secret = sources.secrets.get(name).and_then(Option::as_ref);
            if secret.is_none() && !is_optional {
                return Err(ConfigError::NoObject { kind: "secret", name: name.to_owned() });
            }
            let content = secret
                .iter()
                .flat_map(|s| s.data.iter().flatten())
                .map(|(key, value)| (key.as_str(), value.0.as_slice()))
                .collect();
            let files = Files { kind: "Secret", name, is_optional, content };
            files.write(&folder, wanted.items.as_deref(), wanted.default_mode)?;
        } else if !is_empty_dir(volume) {
            return Err(ConfigError::Unsupported(format!(
                "volume {} is of a type that this node does not have; emptyDir, configMap and secret are there",
                volume.name
            )));
        }
    }
    Ok(())
}

/// The mounts of one container.
pub(crate) fn mounts(
    pod: &Pod,
    container: &Container,
    dir: &PodDir,
) -> Result<Vec<Mount>, ConfigError> {
    let volumes = || pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    container
        .volume_mounts
        .iter()
        .flatten()
        .map(|mount| {
            let volume = volumes().find(|v| v.name == mount.name).ok_or_else(|| {
                ConfigError::Unsupported(format!("there is no volume {}", mount.name))
            })?;
            let root = dir.volume(&volume.name);
            let host_path = match mount.sub_path.as_deref().filter(|p| !p.is_empty()) {
                Some(sub_path) => below(&root, sub_path)?,
                None => root,
            };
            Ok(Mount {
                host_path,
                guest_path: mount.mount_path.clone(),
                is_read_only: mount.read_only == Some(true) || !is_empty_dir(volume),
                limit: limit(volume, dir),
            })
        })
        .collect()
}

/// `sizeLimit` of an emptyDir.
fn limit(volume: &Volume, dir: &PodDir) -> Option<VolumeLimit> {
    let quantity = volume.empty_dir.as_ref()?.size_limit.as_ref()?;
    Some(VolumeLimit { root: dir.volume(&volume.name), bytes_max: bytes(&quantity.0)? })
}

/// An emptyDir, said or by default.
fn is_empty_dir(volume: &Volume) -> bool {
    let named = Volume { name: volume.name.clone(), ..Volume::default() };
    volume.empty_dir.is_some() || *volume == named
}

/// The folder `sub_path` within `root`; made if missing. Never outside, whatever links a guest made.
fn below(root: &Path, sub_path: &str) -> Result<PathBuf, ConfigError> {
    let relative = relative(sub_path)?;
    let path = root.join(relative);
    if !path.exists() {
        make_private(&path)?;
    }
    let (root, path) = (root.canonicalize()?, path.canonicalize()?);
    if !path.starts_with(&root) || !path.is_dir() {
        return Err(ConfigError::Unsupported(format!(
            "subPath {sub_path} is no folder of the volume"
        )));
    }
    Ok(path)
}

fn relative(path: &str) -> Result<&Path, ConfigError> {
    let parsed = Path::new(path);
    if parsed.components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir)) {
        Ok(parsed)
    } else {
        Err(ConfigError::Unsupported(format!("path {path} must be relative and without ..")))
    }
}

/// What a ConfigMap or Secret volume holds.
struct Files<'a> {
    kind: &'static str,
    name: &'a str,
    is_optional: bool,
    content: BTreeMap<&'a str, &'a [u8]>,
}

impl Files<'_> {
    fn write(
        &self,
        folder: &Path,
        items: Option<&[KeyToPath]>,
        default_mode: Option<i32>,
    ) -> Result<(), ConfigError> {
        let mode = |mode: Option<i32>| {
            mode.and_then(|m| u32::try_from(m).ok()).map_or(MODE_DEFAULT, |m| m & 0o777)
        };
        let mut kept = BTreeSet::new();
        let mut put = |path: &str, content: &[u8], mode: u32| -> Result<(), ConfigError> {
            let path = folder.join(relative(path)?);
            if std::fs::read(&path).ok().as_deref() != Some(content) {
                write_atomic(&path, content)?;
            }
            // The agent must be able to replace it, whatever mode the pod asks for.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode | 0o400))?;
            kept.insert(path);
            Ok(())
        };
        match items.filter(|items| !items.is_empty()) {
            None => {
                for (key, content) in &self.content {
                    put(key, content, mode(default_mode))?;
                }
            }
            Some(items) => {
                for item in items {
                    match self.content.get(item.key.as_str()) {
                        Some(content) => {
                            put(&item.path, content, mode(item.mode.or(default_mode)))?
                        }
                        None if self.is_optional => {}
                        None => {
                            return Err(ConfigError::NoKey {
                                kind: self.kind,
                                name: self.name.to_owned(),
                                key: item.key.clone(),
                            });
                        }
                    }
                }
            }
        }
        remove_others(folder, &kept)?;
        Ok(())
    }
}

/// Removes files of an earlier content. Only the agent writes here: guests see it read-only.
fn remove_others(folder: &Path, kept: &BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            remove_others(&path, kept)?;
        } else if !kept.contains(&path) {
            std::fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::dirs::Dirs;
    use serde_json::json;

    fn sources(data: serde_json::Value) -> Sources {
        let map = serde_json::from_value(json!({"data": data})).unwrap();
        Sources { config_maps: BTreeMap::from([("c".into(), Some(map))]), ..Sources::default() }
    }

    fn pod(volume: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": {"containers": [{"name": "app",
            "volumeMounts": [{"name": "v", "mountPath": "/data"}]}], "volumes": [volume]}}))
        .unwrap()
    }

    #[test]
    fn a_config_map_becomes_files_and_keys_that_went_away_go() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dirs::create(root.path().to_owned()).unwrap().pod("u");
        let pod = pod(json!({"name": "v", "configMap": {"name": "c"}}));
        write_volumes(&pod, &dir, &sources(json!({"a": "1", "b": "2"}))).unwrap();
        assert_eq!(std::fs::read_to_string(dir.volume("v").join("b")).unwrap(), "2");
        write_volumes(&pod, &dir, &sources(json!({"a": "3"}))).unwrap();
        assert_eq!(std::fs::read_to_string(dir.volume("v").join("a")).unwrap(), "3");
        assert!(!dir.volume("v").join("b").exists());
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let mounts = mounts(&pod, container, &dir).unwrap();
        assert!(mounts[0].is_read_only);
        assert_eq!(mounts[0].guest_path, "/data");
    }

    #[test]
    fn paths_out_of_the_volume_and_unknown_types_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let dir = Dirs::create(root.path().to_owned()).unwrap().pod("u");
        for volume in [
            json!({"name": "v", "configMap": {"name": "c", "items": [{"key": "a", "path": "../a"}]}}),
            json!({"name": "v", "configMap": {"name": "other"}}),
            json!({"name": "v", "nfs": {"server": "s", "path": "/"}}),
        ] {
            write_volumes(&pod(volume), &dir, &sources(json!({"a": "1"}))).unwrap_err();
        }
        std::fs::create_dir_all(dir.volume("v")).unwrap();
        std::os::unix::fs::symlink("/", dir.volume("v").join("out")).unwrap();
        assert!(below(&dir.volume("v"), "out/etc").is_err());
        assert!(below(&dir.volume("v"), "in/side").unwrap().is_dir());
    }
}
