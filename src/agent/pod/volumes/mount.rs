//! What a container sees of its pod's volumes.
//!
//! A WASI preopen is a folder. A mount of a single file (`subPath` of a file, a hostPath of type
//! File) therefore shows the guest the folder above the mount path, with nothing in it but such
//! files: a private folder of the container, with a copy of each file that is read-only, and a
//! hard link to each that may be written. A file mount never changes with its volume; a write
//! through a hard link is seen by all who share the file.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgeorc_runtime::{Mount, VolumeLimit};
use k8s_openapi::api::core::v1::{Container, Pod, Volume, VolumeMount};
use rustix::fs::{AtFlags, CWD, linkat};

use crate::agent::dirs::{PodDir, make_private};
use crate::agent::pod::env::{ConfigError, Sources, expand};
use crate::agent::pod::plan;
use crate::agent::pod::volumes::beneath::{self, Held, Missing};
use crate::agent::pod::volumes::claim::Place;
use crate::agent::pod::volumes::{atomic, content, host_path, is_empty_dir, is_filled};

/// Largest file that is copied for a read-only mount of that file alone.
const COPY_BYTES_MAX: u64 = 64 << 20;

/// A volume, opened.
struct Root {
    held: Held,
    is_read_only: bool,
    /// Whether a subPath that is not there is made.
    missing: Missing,
    limit: Option<VolumeLimit>,
}

/// The mounts of one container. Makes the folders that `subPath` names, and the container's private
/// folders for files.
pub(crate) fn mounts(
    pod: &Pod,
    container: &Container,
    dir: &PodDir,
    sources: &Sources,
    env: &[(String, String)],
) -> Result<Vec<Mount>, ConfigError> {
    let private = dir.files(&container.name);
    match std::fs::remove_dir_all(&private) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err.into()),
        _ => {}
    }
    let mut mounts = Vec::new();
    let mut files = FileMounts { private, folders: BTreeMap::new() };
    for wanted in container.volume_mounts.iter().flatten() {
        let volume = volume_of(pod, &wanted.name)?;
        let sub_path = sub_path(wanted, env)?;
        let root = root(volume, dir, sources, sub_path.is_some())?;
        let is_read_only = root.is_read_only || wanted.read_only == Some(true);
        let held = match &sub_path {
            None => root.held,
            Some(path) => {
                beneath::open(&root.held.path(), path, root.missing).map_err(|cause| {
                    ConfigError::Unsupported(format!(
                        "subPath {} is no folder or file of the volume {}: {cause}",
                        path.display(),
                        volume.name
                    ))
                })?
            }
        };
        if held.is_folder {
            mounts.push(Mount {
                host_path: held.path(),
                pin: Some(Arc::new(held.handle)),
                guest_path: wanted.mount_path.clone(),
                is_read_only,
                limit: root.limit,
            });
        } else {
            files.add(&wanted.mount_path, &held, is_read_only, root.limit)?;
        }
    }
    files.finish(&mut mounts)?;
    Ok(mounts)
}

fn volume_of<'a>(pod: &'a Pod, name: &str) -> Result<&'a Volume, ConfigError> {
    let mut volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    volumes
        .find(|v| v.name == name)
        .ok_or_else(|| ConfigError::Unsupported(format!("there is no volume {name}")))
}

/// The path within the volume, `subPathExpr` with the container's variables in it.
fn sub_path(mount: &VolumeMount, env: &[(String, String)]) -> Result<Option<PathBuf>, ConfigError> {
    let text = match mount.sub_path_expr.as_deref().filter(|expr| !expr.is_empty()) {
        None => mount.sub_path.clone().filter(|path| !path.is_empty()),
        Some(expr) => {
            let text = expand(expr, env);
            if text.contains("$(") {
                return Err(ConfigError::Unsupported(format!(
                    "subPathExpr {expr} names a variable that is not set"
                )));
            }
            Some(text)
        }
    };
    match text {
        // Of the volume itself: `.` is no name in it.
        Some(text) if Path::new(&text) == Path::new(".") => Ok(None),
        Some(text) => content::relative(&text).map(Some),
        None => Ok(None),
    }
}

fn root(
    volume: &Volume,
    dir: &PodDir,
    sources: &Sources,
    has_sub_path: bool,
) -> Result<Root, ConfigError> {
    let open = |path: &Path| beneath::open(path, Path::new(""), Missing::Refuse);
    let folder = dir.volume(&volume.name);
    if let Some(wanted) = &volume.host_path {
        let kind = wanted.type_.as_deref().unwrap_or_default();
        let allowed = host_path::open(&wanted.path, kind, &sources.host_paths)?;
        let missing = if allowed.is_read_only { Missing::Refuse } else { Missing::MakeFolder };
        return Ok(Root {
            held: allowed.held,
            is_read_only: allowed.is_read_only,
            missing,
            limit: None,
        });
    }
    if let Some(wanted) = &volume.persistent_volume_claim {
        let claim = sources.claims.get(&wanted.claim_name).ok_or_else(|| {
            ConfigError::Unavailable(format!(
                "persistentvolumeclaim \"{}\" not found",
                wanted.claim_name
            ))
        })?;
        let is_read_only = claim.is_read_only || wanted.read_only == Some(true);
        let (held, is_read_only) = match &claim.place {
            Place::Own(path) => (open(path)?, is_read_only),
            Place::Host(path) => {
                let allowed = host_path::open(path, "Directory", &sources.host_paths)?;
                (allowed.held, is_read_only || allowed.is_read_only)
            }
        };
        return Ok(Root {
            held,
            is_read_only,
            missing: if is_read_only { Missing::Refuse } else { Missing::MakeFolder },
            limit: None,
        });
    }
    if is_filled(volume) {
        // What a subPath shows is the version of this moment: it does not follow the swap.
        let path = if has_sub_path { atomic::data(&folder).unwrap_or(folder) } else { folder };
        return Ok(Root {
            held: open(&path)?,
            is_read_only: true,
            missing: Missing::Refuse,
            limit: None,
        });
    }
    debug_assert!(is_empty_dir(volume), "other types are refused when volumes are written");
    let limit = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref());
    Ok(Root {
        held: open(&folder)?,
        is_read_only: false,
        missing: Missing::MakeFolder,
        // Zero is no limit, as in Kubernetes.
        limit: limit
            .and_then(|q| plan::bytes(&q.0))
            .filter(|bytes| *bytes > 0)
            .map(|bytes_max| VolumeLimit { root: folder, bytes_max }),
    })
}

/// Files that are mounted alone, by the guest's folder above them.
struct FileMounts {
    private: PathBuf,
    folders: BTreeMap<PathBuf, FileFolder>,
}

struct FileFolder {
    host_path: PathBuf,
    is_read_only: bool,
    limit: Option<VolumeLimit>,
    names: BTreeSet<std::ffi::OsString>,
}

impl FileMounts {
    fn add(
        &mut self,
        mount_path: &str,
        file: &Held,
        is_read_only: bool,
        limit: Option<VolumeLimit>,
    ) -> Result<(), ConfigError> {
        let refused = |why: &str| ConfigError::Unsupported(format!("mount at {mount_path}: {why}"));
        let path = Path::new(mount_path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(refused("a file needs a name to be mounted at"));
        };
        let number = self.folders.len();
        let folder = self.folders.entry(parent.to_owned()).or_insert_with(|| FileFolder {
            host_path: self.private.join(number.to_string()),
            is_read_only,
            limit,
            names: BTreeSet::new(),
        });
        // One folder is one preopen, which may be written or may not.
        if folder.is_read_only != is_read_only {
            return Err(refused(
                "files of one folder must all be mounted readOnly, or all for writing",
            ));
        }
        if !folder.names.insert(name.to_owned()) {
            return Err(refused("two files at one path"));
        }
        make_private(&folder.host_path)?;
        let target = folder.host_path.join(name);
        if is_read_only {
            copy(file, &target)
        } else {
            // The link is made to what is held, not to what has its name by now.
            linkat(CWD, file.path(), CWD, &target, AtFlags::SYMLINK_FOLLOW).map_err(|cause| {
                refused(&format!("the file cannot be shared for writing: {cause}; mount its folder, or mount it readOnly"))
            })
        }
    }

    fn finish(self, mounts: &mut Vec<Mount>) -> Result<(), ConfigError> {
        for (parent, folder) in self.folders {
            let has_folder = mounts.iter().any(|other| Path::new(&other.guest_path) == parent);
            if has_folder {
                return Err(ConfigError::Unsupported(format!(
                    "a file is mounted into {}, where another volume is mounted; mount the file elsewhere",
                    parent.display()
                )));
            }
            let held = beneath::open(&folder.host_path, Path::new(""), Missing::Refuse)?;
            mounts.push(Mount {
                host_path: held.path(),
                pin: Some(Arc::new(held.handle)),
                guest_path: parent.to_string_lossy().into_owned(),
                is_read_only: folder.is_read_only,
                limit: folder.limit,
            });
        }
        Ok(())
    }
}

fn copy(file: &Held, target: &Path) -> Result<(), ConfigError> {
    let mut from = std::fs::File::open(file.path())?;
    if from.metadata()?.len() > COPY_BYTES_MAX {
        return Err(ConfigError::Unsupported(format!(
            "a file mounted alone may have {COPY_BYTES_MAX} bytes; mount its folder"
        )));
    }
    let mut to = std::fs::File::create_new(target)?;
    io::copy(&mut io::Read::take(&mut from, COPY_BYTES_MAX), &mut to)?;
    Ok(())
}
