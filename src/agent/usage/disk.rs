//! What a pod has on this node's disk.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Files and folders of one pod that are looked at in one walk.
const ENTRIES_MAX: usize = 20_000;
/// Bytes of a block in `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// Files, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Space that they take.
    pub(crate) bytes: u64,
    /// Sum of their lengths: what limits of volumes count.
    pub(crate) length: u64,
    /// How many, folders included.
    pub(crate) inodes: u64,
}

impl Tally {
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            length: self.length.saturating_add(other.length),
            inodes: self.inodes.saturating_add(other.inodes),
        }
    }
}

/// The disk use of one pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PodDisk {
    /// Of each container's logs.
    pub(crate) logs: BTreeMap<String, Tally>,
    /// Of what else each container can write outside of volumes.
    pub(crate) files: BTreeMap<String, Tally>,
    /// Of each volume that lives in the pod.
    pub(crate) volumes: BTreeMap<String, Tally>,
    /// Of what the agent keeps.
    pub(crate) other: Tally,
    /// Whether everything was looked at: a pod of very many files is counted in part.
    pub(crate) is_whole: bool,
}

impl PodDisk {
    /// Everything: Kubernetes' ephemeral storage.
    pub(crate) fn total(&self) -> Tally {
        let parts = [&self.logs, &self.files, &self.volumes];
        let parts = parts.into_iter().flat_map(|part| part.values().copied());
        parts.fold(self.other, Tally::plus)
    }

    /// Logs and files of one container.
    pub(crate) fn of_container(&self, name: &str) -> Tally {
        let of = |part: &BTreeMap<String, Tally>| part.get(name).copied().unwrap_or_default();
        of(&self.logs).plus(of(&self.files))
    }
}

/// Walks through the pod's folder. Blocks on the file system.
pub(crate) fn measure(pod: &Path) -> PodDisk {
    let mut disk = PodDisk::default();
    let mut left = ENTRIES_MAX;
    for (name, path, own) in entries(pod, &mut left) {
        let part = match name.as_str() {
            "logs" => &mut disk.logs,
            "files" | "termination" | "scratch" => &mut disk.files,
            "volumes" => &mut disk.volumes,
            _ => {
                disk.other = disk.other.plus(own).plus(walk(&path, &mut left));
                continue;
            }
        };
        for (name, path, own) in entries(&path, &mut left) {
            let tally = part.entry(name).or_default();
            *tally = tally.plus(own).plus(walk(&path, &mut left));
        }
    }
    disk.is_whole = left > 0;
    disk
}

/// Everything below `root`.
fn walk(root: &Path, left: &mut usize) -> Tally {
    let (mut folders, mut sum) = (vec![root.to_owned()], Tally::default());
    while let Some(folder) = folders.pop() {
        for (_, path, own) in entries(&folder, left) {
            sum = sum.plus(own);
            if own.length == 0 {
                folders.push(path);
            }
        }
    }
    sum
}

/// What is in a folder; nothing if it is none. Links are not followed. Folders and empty files have
/// no length.
fn entries(folder: &Path, left: &mut usize) -> Vec<(String, PathBuf, Tally)> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries.flatten() {
        let Some(rest) = left.checked_sub(1) else { break };
        *left = rest;
        let Ok(meta) = entry.metadata() else { continue };
        // A second name of a file takes no second space.
        let names = if meta.is_dir() { 1 } else { meta.nlink().max(1) };
        let tally = Tally {
            bytes: meta.blocks().saturating_mul(BLOCK_BYTES) / names,
            length: if meta.is_dir() { 0 } else { meta.len() },
            inodes: 1,
        };
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path(), tally));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pods_files_count_where_they_belong() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, bytes: usize| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, vec![7; bytes]).unwrap();
        };
        write("logs/web/0.log", 100);
        write("logs/web/1.log", 50);
        write("files/web/0/app.conf", 10);
        write("termination/web/termination-log", 3);
        write("scratch/web/left", 7);
        write("volumes/data/deep/er/file", 70_000);
        write("pod.json", 20);
        std::os::unix::fs::symlink("/", root.path().join("volumes/data/link")).unwrap();
        let disk = measure(root.path());
        assert!(disk.is_whole);
        assert_eq!(disk.logs["web"].length, 150);
        assert_eq!(disk.of_container("web").length, 170);
        let data = disk.volumes["data"];
        assert!(data.bytes >= 65_536 && data.inodes == 5, "{data:?}");
        assert!(data.length >= 70_000 && data.length < 70_100, "{data:?}");
        assert!(disk.total().length >= 70_183, "{disk:?}");
        assert_eq!(measure(&root.path().join("gone")).total(), Tally::default());
    }
}
