//! What a container sees of its pod's volumes.
//!
//! A WASI preopen is a folder. A mount of a single file (`subPath` of a file, a hostPath of type
//! File) therefore shows the guest the folder above the mount path, with nothing in it but such
//! files: a private folder of the container, with a copy of each file that is read-only, and a
//! hard link to each that may be written. A file mount never changes with its volume; a write
//! through a hard link is seen by all who share the file, and counts for the limit of its volume.
//!
//! The pod's own files in `/etc` are such files, which a container's own mounts displace.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use edgeorc_runtime::{Mount, VolumeLimit};
use k8s_openapi::api::core::v1::{
    Container, ImageVolumeStatus, PersistentVolumeClaimVolumeSource, Pod, Volume, VolumeMount,
    VolumeMountStatus, VolumeStatus,
};
use rustix::fs::{AtFlags, CWD, linkat};

use crate::agent::beneath::{self, Held, Missing};
use crate::agent::devices::of_container;
use crate::agent::dirs::{PodDir, remove_folder};
use crate::agent::pod::env::{ConfigError, Sources, expand};
use crate::agent::pod::plan;

use crate::agent::pod::volumes::claim::Place;
use crate::agent::pod::volumes::{atomic, content, etc, host_path, is_empty_dir, is_filled};

/// Largest file that is copied for a read-only mount of that file alone.
const COPY_BYTES_MAX: u64 = 64 << 20;

/// A volume, opened.
struct Root {
    held: Held,
    is_read_only: bool,
    /// Nobody writes to its files, neither guests nor the node.
    is_immutable: bool,
    /// Whether a subPath that is not there is made.
    missing: Missing,
    limit: Option<VolumeLimit>,
}

impl Root {
    fn new(held: Held, is_read_only: bool) -> Self {
        let missing = if is_read_only { Missing::Refuse } else { Missing::MakeFolder };
        Self { held, is_read_only, is_immutable: false, missing, limit: None }
    }
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
    remove_folder(&private)?;
    let mut mounts = Vec::new();
    let mut files = FileMounts { dir, private, folders: BTreeMap::new() };
    for wanted in container.volume_mounts.iter().flatten() {
        let volume = volume_of(pod, &wanted.name)?;
        let sub_path = sub_path(wanted, env)?;
        let root = root(volume, dir, sources, sub_path.is_some())?;
        let is_read_only = root.is_read_only || wanted.read_only == Some(true);
        let held = match &sub_path {
            None => root.held,
            Some(path) => {
                beneath::open(&root.held.path(), path, root.missing).map_err(|cause| {
                    // Somebody may put there what is missing.
                    ConfigError::Unavailable(format!(
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
            let file = File { held, is_read_only, is_immutable: root.is_immutable };
            files.add(&wanted.mount_path, &file, root.limit)?;
        }
    }
    add_devices(container, sources, &mut mounts, &mut files)?;
    let etc = add_etc(container, dir, &mut files)?;
    files.finish(&mut mounts)?;
    mounts.extend(etc);
    Ok(mounts)
}

/// The devices of claims that the container names, each where it is on the node.
fn add_devices(
    container: &Container,
    sources: &Sources,
    mounts: &mut Vec<Mount>,
    files: &mut FileMounts<'_>,
) -> Result<(), ConfigError> {
    for name in of_container(container, &sources.given) {
        let device = sources.devices.iter().find(|device| device.name == name);
        let device = device.ok_or_else(|| {
            ConfigError::Unavailable(format!(
                "device {name} is not on this node any more; start the node with --device {name}=PATH"
            ))
        })?;
        let held = beneath::open_device(&device.path).map_err(|cause| {
            ConfigError::Unavailable(format!("device {name} at {}: {cause}", device.path.display()))
        })?;
        let guest_path = device.path.to_string_lossy().into_owned();
        if held.is_folder {
            mounts.push(Mount {
                host_path: held.path(),
                pin: Some(Arc::new(held.handle)),
                guest_path,
                is_read_only: false,
                limit: None,
            });
        } else {
            let file = File { held, is_read_only: false, is_immutable: false };
            files.add(&guest_path, &file, None)?;
        }
    }
    Ok(())
}

/// The pod's own files in `/etc`: their folder as it is, or single ones beside those that the
/// container mounts there.
fn add_etc(
    container: &Container,
    dir: &PodDir,
    files: &mut FileMounts<'_>,
) -> Result<Option<Mount>, ConfigError> {
    let wanted = etc::wanted(container);
    let folder = Path::new(etc::FOLDER);
    match files.folders.get(folder) {
        None if wanted.is_empty() => {}
        None => {
            let held = beneath::open(&dir.etc(), Path::new(""), Missing::Refuse)?;
            return Ok(Some(Mount {
                host_path: held.path(),
                pin: Some(Arc::new(held.handle)),
                guest_path: etc::FOLDER.to_owned(),
                is_read_only: true,
                limit: None,
            }));
        }
        Some(own) if own.is_read_only => {
            for name in wanted {
                let held = beneath::open(&dir.etc(), Path::new(name), Missing::Refuse)?;
                let file = File { held, is_read_only: true, is_immutable: true };
                files.add(&folder.join(name).to_string_lossy(), &file, None)?;
            }
        }
        // One folder is one preopen: these would be for writing as well.
        Some(_) => {}
    }
    Ok(None)
}

/// The container's mounts as its status shows them.
pub(crate) fn shown_mounts(container: &Container, sources: &Sources) -> Vec<VolumeMountStatus> {
    let mounts = container.volume_mounts.iter().flatten();
    let shown = mounts.map(|mount| {
        let image = sources.images.get(&mount.name);
        let image = image.map(|image| ImageVolumeStatus { image_ref: image.id.clone() });
        VolumeMountStatus {
            mount_path: mount.mount_path.clone(),
            name: mount.name.clone(),
            read_only: mount.read_only,
            // Read-only is so at every depth here.
            recursive_read_only: (mount.read_only == Some(true)).then(|| "Enabled".to_owned()),
            volume_status: image.map(|image| VolumeStatus { image: Some(image) }),
        }
    });
    shown.collect()
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
        return Ok(Root::new(allowed.held, allowed.is_read_only));
    }
    if let Some(wanted) = &volume.persistent_volume_claim {
        return claim_root(wanted, sources);
    }
    if volume.image.is_some() {
        let image = sources.images.get(&volume.name);
        let image = image.ok_or_else(|| {
            ConfigError::Unavailable(format!("the image of the volume {} is not here", volume.name))
        })?;
        return Ok(Root { is_immutable: true, ..Root::new(open(&image.folder)?, true) });
    }
    if is_filled(volume) {
        // What a subPath shows is the version of this moment: it does not follow the swap.
        let path = if has_sub_path { atomic::data(&folder).unwrap_or(folder) } else { folder };
        return Ok(Root::new(open(&path)?, true));
    }
    debug_assert!(is_empty_dir(volume), "other types are refused when volumes are written");
    let limit = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref());
    // Zero is no limit, as in Kubernetes.
    let limit = limit.and_then(|q| plan::bytes(&q.0)).filter(|bytes| *bytes > 0);
    let limit = limit.map(|bytes_max| VolumeLimit { root: folder.clone(), bytes_max });
    Ok(Root { limit, ..Root::new(open(&folder)?, false) })
}

fn claim_root(
    wanted: &PersistentVolumeClaimVolumeSource,
    sources: &Sources,
) -> Result<Root, ConfigError> {
    let claim = sources.claims.get(&wanted.claim_name).ok_or_else(|| {
        ConfigError::Unavailable(format!(
            "persistentvolumeclaim \"{}\" not found",
            wanted.claim_name
        ))
    })?;
    let is_read_only = claim.is_read_only || wanted.read_only == Some(true);
    match &claim.place {
        Place::Own(folder) => {
            let held = beneath::open(folder, Path::new(""), Missing::Refuse)?;
            let limit = claim.bytes_max.filter(|bytes| *bytes > 0);
            let limit = limit.map(|bytes_max| VolumeLimit { root: folder.clone(), bytes_max });
            Ok(Root { limit, ..Root::new(held, is_read_only) })
        }
        Place::Host(path) => {
            let allowed = host_path::open(path, "Directory", &sources.host_paths)?;
            Ok(Root::new(allowed.held, is_read_only || allowed.is_read_only))
        }
    }
}

/// Files that are mounted alone, by the guest's folder above them.
struct FileMounts<'a> {
    dir: &'a PodDir,
    private: PathBuf,
    folders: BTreeMap<PathBuf, FileFolder>,
}

/// A file to be mounted alone.
struct File {
    held: Held,
    is_read_only: bool,
    is_immutable: bool,
}

struct FileFolder {
    host_path: PathBuf,
    is_read_only: bool,
    limit: Option<VolumeLimit>,
    names: BTreeSet<std::ffi::OsString>,
}

impl FileMounts<'_> {
    fn add(
        &mut self,
        mount_path: &str,
        file: &File,
        limit: Option<VolumeLimit>,
    ) -> Result<(), ConfigError> {
        let refused = |why: &str| ConfigError::Unsupported(format!("mount at {mount_path}: {why}"));
        let path = Path::new(mount_path);
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(refused("a file needs a name to be mounted at"));
        };
        let (number, is_read_only) = (self.folders.len(), file.is_read_only);
        let folder = self.folders.entry(parent.to_owned()).or_insert_with(|| FileFolder {
            host_path: self.private.join(number.to_string()),
            is_read_only,
            limit: limit.clone(),
            names: BTreeSet::new(),
        });
        // One folder is one preopen, which may be written or may not.
        if folder.is_read_only != is_read_only {
            return Err(refused(
                "files of one folder must all be mounted readOnly, or all for writing",
            ));
        }
        // What is written into the folder counts for one volume.
        if !is_read_only && folder.limit != limit {
            return Err(refused(
                "files of one folder that may be written must be of one volume, if one has a sizeLimit",
            ));
        }
        if !folder.names.insert(name.to_owned()) {
            return Err(refused("two files at one path"));
        }
        self.dir.make(&folder.host_path)?;
        let target = folder.host_path.join(name);
        // The link is made to what is held, not to what has its name by now.
        let link = || linkat(CWD, file.held.path(), CWD, &target, AtFlags::SYMLINK_FOLLOW);
        if let Some(made) = beneath::make_device_like(&file.held, &target) {
            return made.map_err(|cause| {
                refused(&format!("the device cannot be shown to the guest: {cause}; the agent must run as root, on a disk that is not mounted nodev"))
            });
        }
        if is_read_only {
            // What never changes need not be there twice.
            if file.is_immutable && link().is_ok() {
                return Ok(());
            }
            return copy(&file.held, &target);
        }
        link().map_err(|cause| {
            refused(&format!("the file cannot be shared for writing: {cause}; mount its folder, or mount it readOnly"))
        })
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
