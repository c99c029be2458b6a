//! The agent's folder on disk.
//!
//! ```text
//! node.json                              what the node must know before the API answers
//! node.key                               the key of what lies sealed here: [`crate::agent::sealed`]
//! routes.json                            what the routes were made of when a server was heard last
//! registries.yaml                        a copy of the last one that could be used
//! pods/<uid>/pod.json                    the pod, and its status as of the last end that was for good
//! pods/<uid>/address                     its address
//! pods/<uid>/objects/<kind>-<name>.json  ConfigMaps and Secrets it used, for a start without the API;
//!                                        Secrets and tokens are sealed
//! pods/<uid>/etc/                        its `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`, if there is
//!                                        no room in memory
//! pods/<uid>/volumes/<volume>/           its volumes
//! pods/<uid>/files/<container>/          files that the container mounts alone
//! pods/<uid>/logs/<container>/<run>.log  its logs; their numbers tell how often it was restarted
//! pods/<uid>/termination/<container>/    its containers' last words
//! pods/<uid>/roots/<container>/          what tools see as `/`: a folder for each volume
//! pods/.gone-<uid>/                     what is left of a pod that is being removed
//! tools/<name>.wasm                      commands that `exec` finds in every pod
//! volumes/<volume>/                      persistent volumes that live on this node
//! images/                                see [`crate::agent::image`]
//! compiled/                              compiled code by digest and engine
//! ```
//!
//! Where there is a file system in memory ([`crate::agent::memory_dir`]), it holds what must not wear
//! the disk out:
//!
//! ```text
//! pods/<uid>/etc/                        its `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`
//! pods/<uid>/volumes/<volume>/           its volumes with tokens
//! pods/<uid>/objects/token-<name>.json   tokens that were renewed
//! ```
//!
//! # Invariants
//!
//! - Only [`PodDir::create`] makes a pod's folder. What is written below it needs the folder to be
//!   there: nothing of a pod comes back after its removal.

use std::ffi::OsString;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::agent::backlog::Backlog;
use crate::agent::files::{aside, overwrite, replace};
pub(crate) use crate::agent::files::{
    make_one, make_private, read_json, read_own, remove_folder, temporary_name, write_atomic,
    write_json, write_json_aside, write_scratch,
};
use crate::agent::sealed::{self, NodeKey};

/// Start of the name of a pod's folder that is being removed.
const GONE: &str = ".gone-";

/// Kinds of copies that are sealed.
const SEALED_KINDS: [&str; 2] = ["secret", "token"];

/// Names of everything the agent keeps. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    root: PathBuf,
    key: NodeKey,
    /// A folder in memory, if there is one.
    memory: Option<PathBuf>,
}

impl Dirs {
    /// The folder with its first level made.
    pub(crate) fn create(root: PathBuf) -> io::Result<Self> {
        make_private(&root)?;
        let key = NodeKey::open(&root.join("node.key"))?;
        let dirs = Self { root, key, memory: None };
        let (images, compiled, tools) = (dirs.images(), dirs.compiled(), dirs.tools());
        for dir in [&dirs.root, &dirs.pods(), &images, &compiled, &tools, &dirs.volumes()] {
            make_private(dir)?;
        }
        Ok(dirs)
    }

    /// With a folder in memory, which is this user's alone. What it holds of pods that are gone goes.
    pub(crate) fn with_memory(self, memory: Option<PathBuf>) -> Self {
        let dirs = Self { memory, ..self };
        if let Some(pods) = dirs.memory.as_ref().map(|memory| memory.join("pods")) {
            for entry in std::fs::read_dir(&pods).into_iter().flatten().flatten() {
                if !dirs.pods().join(entry.file_name()).exists() {
                    let _ = remove_folder(&entry.path());
                }
            }
        }
        dirs
    }

    pub(crate) fn node_file(&self) -> PathBuf {
        self.root.join("node.json")
    }

    /// The key of what lies sealed on this disk.
    pub(crate) fn key(&self) -> &NodeKey {
        &self.key
    }

    /// What the node's routes were made of.
    pub(crate) fn routes_file(&self) -> PathBuf {
        self.root.join("routes.json")
    }

    /// What the node knew last of network policies.
    pub(crate) fn network_policies_file(&self) -> PathBuf {
        self.root.join("network-policies.json")
    }

    /// The last `registries.yaml` that could be used.
    pub(crate) fn registries_copy(&self) -> PathBuf {
        self.root.join("registries.yaml")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// The files of an image that is a volume, by the hex of its manifest's digest.
    pub(crate) fn image_tree(&self, hex: &str) -> PathBuf {
        self.images().join("trees").join(file_name(hex))
    }

    pub(crate) fn compiled(&self) -> PathBuf {
        self.root.join("compiled")
    }

    pub(crate) fn tools(&self) -> PathBuf {
        self.root.join("tools")
    }

    /// Where persistent volumes of this node live.
    pub(crate) fn volumes(&self) -> PathBuf {
        self.root.join("volumes")
    }

    /// The folder of a persistent volume that this node provisioned.
    pub(crate) fn persistent_volume(&self, name: &str) -> PathBuf {
        self.volumes().join(file_name(name))
    }

    pub(crate) fn pod(&self, uid: &str) -> PodDir {
        let name = file_name(uid);
        let memory = self.memory.as_ref().map(|memory| memory.join("pods").join(&name));
        PodDir { path: self.pods().join(name), memory, key: self.key.clone() }
    }

    /// Every pod that has a folder here, with its uid.
    pub(crate) fn all_pods(&self) -> io::Result<Vec<(String, PodDir)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.pods())? {
            let entry = entry?;
            if let Ok(uid) = entry.file_name().into_string()
                && !uid.starts_with(GONE)
            {
                let dir = self.pod(&uid);
                found.push((uid, dir));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Removes what an earlier life of this agent has not come to remove of pods that are gone.
    pub(crate) fn remove_gone(&self) -> io::Result<()> {
        for entry in std::fs::read_dir(self.pods())? {
            let entry = entry?;
            if entry.file_name().as_encoded_bytes().starts_with(GONE.as_bytes()) {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }
}

/// The folder of one pod.
#[derive(Debug, Clone)]
pub(crate) struct PodDir {
    path: PathBuf,
    key: NodeKey,
    memory: Option<PathBuf>,
}

impl PodDir {
    /// The pod's, which names its folder.
    pub(crate) fn uid(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(crate) fn create(&self) -> io::Result<()> {
        make_private(&self.path)?;
        if let Some(memory) = &self.memory
            && let Err(err) = make_private(memory)
        {
            tracing::debug!(%err, "no folder in memory for the pod, its disk serves");
        }
        Ok(())
    }

    /// Whether the pod was here before.
    pub(crate) fn has_pod(&self) -> bool {
        self.path.join("pod.json").exists()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes what takes space and what a pod that has ended needs no more: its volumes, its logs.
    /// What tells that it has ended stays.
    pub(crate) fn shed(&self) -> io::Result<()> {
        for part in ["volumes", "files", "logs", "termination", "scratch", "roots"] {
            match std::fs::remove_dir_all(self.path.join(part)) {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
        }
        self.memory.as_deref().map_or(Ok(()), remove_folder)
    }

    /// Removes the pod's files for good. Whoever is still writing some fails from here on: the
    /// folder loses its name first.
    pub(crate) fn remove(&self) -> io::Result<()> {
        let (Some(pods), Some(name)) = (self.path.parent(), self.path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let mut gone = OsString::from(GONE);
        gone.push(name);
        let gone = pods.join(gone);
        remove_folder(&gone)?;
        match std::fs::rename(&self.path, &gone) {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(err) => return Err(err),
            Ok(()) => remove_folder(&gone)?,
        }
        self.memory.as_deref().map_or(Ok(()), remove_folder)
    }

    /// Makes a folder of the pod, and those above it up to the pod's own, which must be there.
    pub(crate) fn make(&self, folder: &Path) -> io::Result<()> {
        let tops = [Some(&self.path), self.memory.as_ref()];
        let found = tops.into_iter().flatten().find_map(|top| {
            let below = folder.strip_prefix(top).ok()?;
            Some((top.clone(), below))
        });
        let (mut at, below) = found.ok_or(io::ErrorKind::InvalidInput)?;
        for name in below.components() {
            at.push(name);
            make_one(&at)?;
        }
        Ok(())
    }

    /// Keeps a copy of something that the pod needs for a start without the API: what a power
    /// cut leaves of it is left to chance until [`Self::sync`].
    pub(crate) fn keep(&self, kind: &str, name: &str, value: &impl Serialize) -> io::Result<()> {
        replace(&self.object_file(kind, name), &self.copy_of(kind, name, value)?, false)
    }

    /// The bytes of a copy: sealed if others must not read it.
    fn copy_of(&self, kind: &str, name: &str, value: &impl Serialize) -> io::Result<Vec<u8>> {
        let plain = serde_json::to_vec(value)?;
        if SEALED_KINDS.contains(&kind) {
            return self.key.seal(&self.about(kind, name), &plain);
        }
        Ok(plain)
    }

    /// What a sealed copy is bound to.
    fn about(&self, kind: &str, name: &str) -> String {
        let pod = self.path.file_name().unwrap_or_default().to_string_lossy();
        format!("{pod}/{kind}-{name}")
    }

    /// What [`Self::keep`] kept; `None` if it is not there or not whole. Blocks on the disk.
    pub(crate) fn kept<T: DeserializeOwned>(&self, kind: &str, name: &str) -> Option<T> {
        self.read_copy(&self.object_file(kind, name), kind, name)
    }

    /// What [`Self::keep_in_memory`] kept.
    pub(crate) fn kept_in_memory<T: DeserializeOwned>(&self, kind: &str, name: &str) -> Option<T> {
        self.read_copy(&self.object_in_memory(kind, name)?, kind, name)
    }

    fn read_copy<T: DeserializeOwned>(&self, file: &Path, kind: &str, name: &str) -> Option<T> {
        if !SEALED_KINDS.contains(&kind) {
            return read_json(file);
        }
        let content = read_own(file)?;
        if sealed::is_sealed(&content) {
            let plain = self.key.unseal(&self.about(kind, name), &content)?;
            return serde_json::from_slice(&plain).ok();
        }
        // Of an agent that did not seal: from now on it is.
        let found = serde_json::from_slice(&content).ok()?;
        let sealed = self.key.seal(&self.about(kind, name), &content).ok();
        if let Some(Err(err)) = sealed.map(|sealed| replace(file, &sealed, true)) {
            tracing::warn!(%err, "a copy of a secret was not sealed");
        }
        Some(found)
    }

    /// As [`Self::keep`], for those who must not wait for the disk on a thread that others need.
    ///
    /// # Cancel safety
    ///
    /// The copy is written all the same.
    pub(crate) async fn keep_aside(
        &self,
        kind: &str,
        name: &str,
        value: &impl Serialize,
    ) -> io::Result<()> {
        let (path, content) = (self.object_file(kind, name), self.copy_of(kind, name, value)?);
        aside(move || replace(&path, &content, false)).await
    }

    /// As [`Self::keep`], by [`Self::write_down`].
    pub(crate) fn keep_later(
        &self,
        (kind, name): (&str, &str),
        value: &impl Serialize,
        backlog: &Backlog,
    ) -> io::Result<()> {
        backlog.put(self.object_file(kind, name), self.copy_of(kind, name, value)?);
        Ok(())
    }

    /// Writes what was kept for later. Blocks on the disk.
    pub(crate) fn write_down(&self, backlog: Backlog) -> io::Result<()> {
        for (file, content) in backlog.into_files() {
            self.make(file.parent().unwrap_or(&self.path))?;
            overwrite(&file, &content, false)?;
        }
        Ok(())
    }

    /// As [`Self::keep_aside`], in memory. An error is no loss where the disk can serve.
    pub(crate) async fn keep_in_memory(
        &self,
        kind: &str,
        name: &str,
        value: &impl Serialize,
    ) -> io::Result<()> {
        let path = self.object_in_memory(kind, name).ok_or(io::ErrorKind::Unsupported)?;
        let content = self.copy_of(kind, name, value)?;
        aside(move || replace(&path, &content, false)).await
    }

    /// Where a copy is that does not outlive the machine's power.
    pub(crate) fn object_in_memory(&self, kind: &str, name: &str) -> Option<PathBuf> {
        let file = file_name(&format!("{kind}-{name}.json"));
        self.memory.as_ref().map(|memory| memory.join("objects").join(file))
    }

    /// Where the files are that every container finds in `/etc`: in memory if they were written there.
    pub(crate) fn etc(&self) -> PathBuf {
        let in_memory = self.etc_in_memory().filter(|folder| folder.is_dir());
        in_memory.unwrap_or_else(|| self.path.join("etc"))
    }

    /// Where these files can be in memory.
    pub(crate) fn etc_in_memory(&self) -> Option<PathBuf> {
        self.memory.as_ref().map(|memory| memory.join("etc"))
    }

    pub(crate) fn read_pod(&self) -> Option<Pod> {
        read_json(&self.path.join("pod.json"))
    }

    pub(crate) fn write_pod(&self, pod: &Pod) -> io::Result<()> {
        write_json(&self.path.join("pod.json"), pod)
    }

    /// As [`PodDir::write_pod`] for a pod that was not here before: what a power cut leaves of it is left
    /// to chance until [`Self::sync`]. A pod's start does not wait for the disk.
    pub(crate) fn write_new_pod(&self, pod: &Pod) -> io::Result<()> {
        overwrite(&self.path.join("pod.json"), &serde_json::to_vec(pod)?, false)
    }

    /// One on each line.
    pub(crate) fn read_addresses(&self) -> Vec<IpAddr> {
        let text = std::fs::read_to_string(self.path.join("address")).unwrap_or_default();
        text.lines().filter_map(|line| line.trim().parse().ok()).collect()
    }

    /// Keeps the pod's addresses for the next agent, by [`Self::write_down`].
    pub(crate) fn keep_addresses_later(&self, ips: &[IpAddr], backlog: &Backlog) {
        let lines: Vec<String> = ips.iter().map(ToString::to_string).collect();
        backlog.put(self.path.join("address"), lines.join("\n").into_bytes());
    }

    pub(crate) fn object_file(&self, kind: &str, name: &str) -> PathBuf {
        self.path.join("objects").join(file_name(&format!("{kind}-{name}.json")))
    }

    /// Waits until the disk holds what a start has written: the pod, its address, and the copies.
    pub(crate) fn sync(&self) -> io::Result<()> {
        let sync = |path: &Path| match std::fs::File::open(path) {
            Ok(file) => file.sync_all(),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(err),
        };
        let objects = self.path.join("objects");
        for entry in std::fs::read_dir(&objects).into_iter().flatten() {
            sync(&entry?.path())?;
        }
        sync(&objects)?;
        sync(&self.path.join("address"))?;
        sync(&self.path.join("pod.json"))?;
        sync(&self.path)?;
        self.path.parent().map_or(Ok(()), sync)
    }

    /// The folder of a volume: in memory if it was made there.
    pub(crate) fn volume(&self, name: &str) -> PathBuf {
        let in_memory = self.volume_in_memory(name).filter(|folder| folder.is_dir());
        in_memory.unwrap_or_else(|| self.path.join("volumes").join(file_name(name)))
    }

    /// Where a volume's folder can be made in memory.
    pub(crate) fn volume_in_memory(&self, name: &str) -> Option<PathBuf> {
        self.memory.as_ref().map(|memory| memory.join("volumes").join(file_name(name)))
    }

    /// Where a container leaves its last words.
    pub(crate) fn termination(&self, container: &str) -> PathBuf {
        self.path.join("termination").join(file_name(container))
    }

    /// A container's `/tmp`.
    pub(crate) fn scratch(&self, container: &str) -> PathBuf {
        self.path.join("scratch").join(file_name(container))
    }

    pub(crate) fn exec_root(&self, container: &str) -> PathBuf {
        self.path.join("roots").join(file_name(container))
    }

    /// Folders for files that a container mounts alone.
    pub(crate) fn files(&self, container: &str) -> PathBuf {
        self.path.join("files").join(file_name(container))
    }

    pub(crate) fn logs(&self, container: &str) -> PathBuf {
        self.path.join("logs").join(file_name(container))
    }

    /// Number of the newest run of a container that has left a log.
    pub(crate) fn last_run(&self, container: &str) -> Option<u32> {
        let logs = std::fs::read_dir(self.logs(container)).ok()?;
        let names = logs.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        names.filter_map(|name| name.strip_suffix(".log")?.parse().ok()).max()
    }

    pub(crate) fn log_file(&self, container: &str, run: u32) -> PathBuf {
        self.logs(container).join(format!("{run}.log"))
    }
}

/// A name from the API as one component of a path: separators cannot lead out of the folder.
fn file_name(name: &str) -> String {
    let clean: String =
        name.chars().map(|c| if matches!(c, '/' | '\\' | '\0') { '_' } else { c }).collect();
    if clean.is_empty() || clean.chars().all(|c| c == '.') { format!("_{clean}") } else { clean }
}

#[cfg(test)]
#[path = "dirs_test.rs"]
mod dirs_test;
