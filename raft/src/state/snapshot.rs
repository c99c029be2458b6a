//! The folder of snapshots: building, receiving, keeping two.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::frozen::StateMetaV1;
use crate::log::{Disk, DiskFile};
use crate::state::db::View;
use crate::state::snapshot_file::{Item, Writer, read};

/// Whole snapshots kept; the older one is there should the newer one rot.
const SNAPSHOTS_KEPT: usize = 2;
const SUFFIX: &str = ".snap";
/// Of files that are not whole snapshots yet.
const TEMPORARY_SUFFIX: &str = ".tmp";
const BUILD_NAME: &str = "build.tmp";

/// A whole, verified snapshot on disk.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotFile {
    file: Arc<dyn DiskFile>,
    name: String,
    pub(crate) meta: StateMetaV1,
    pub(crate) bytes: u64,
    /// Of a received file: removes it when nobody installs it.
    unkept: Option<Arc<Unkept>>,
}

/// A file under a name of its own that goes with its last owner, unless it became a snapshot.
#[derive(Debug)]
pub(crate) struct Unkept {
    disk: Arc<dyn Disk>,
    name: String,
    is_kept: AtomicBool,
}

impl Drop for Unkept {
    fn drop(&mut self) {
        if !self.is_kept.load(Ordering::Acquire)
            && let Err(err) = self.disk.remove(&self.name)
        {
            tracing::debug!(name = self.name, %err, "cannot remove a snapshot that is not used");
        }
    }
}

/// A snapshot that a peer is sending.
#[derive(Debug)]
pub(crate) struct Receiving {
    pub(crate) file: Arc<dyn DiskFile>,
    unkept: Unkept,
}

impl SnapshotFile {
    /// Every row and request; fails when the file is damaged.
    pub(crate) fn read(&self, each: impl FnMut(Item) -> io::Result<()>) -> io::Result<()> {
        read(self.file.as_ref(), each).map(|_| ())
    }

    /// Part of the file, to be sent.
    pub(crate) fn part(&self, offset: u64, bytes_max: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.bytes.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut part = vec![0; left.min(bytes_max)];
        self.file.read_at(offset, &mut part)?;
        Ok(part)
    }
}

/// The snapshots of one replica.
#[derive(Debug)]
pub(crate) struct Snapshots {
    disk: Arc<dyn Disk>,
    current: Mutex<Option<SnapshotFile>>,
    /// Makes the name of the next received file.
    next_received: AtomicU64,
}

impl Snapshots {
    /// Opens the folder; removes what is half made or damaged.
    pub(crate) fn open(disk: Arc<dyn Disk>) -> io::Result<Self> {
        let mut names = disk.list()?;
        for name in names.iter().filter(|name| name.ends_with(TEMPORARY_SUFFIX)) {
            disk.remove(name)?;
        }
        names.retain(|name| name.ends_with(SUFFIX));
        names.sort_unstable();
        let mut current = None;
        while let Some(name) = names.pop() {
            match verified(disk.as_ref(), name.clone()) {
                Ok(file) => {
                    current = Some(file);
                    break;
                }
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    tracing::warn!(name, err = %e, "removing a damaged snapshot");
                    disk.remove(&name)?;
                }
                Err(e) => return Err(e),
            }
        }
        Ok(Self { disk, current: Mutex::new(current), next_received: AtomicU64::new(0) })
    }

    /// The newest snapshot.
    pub(crate) fn current(&self) -> Option<SnapshotFile> {
        self.current.lock().clone()
    }

    /// Writes a view of the state to a new snapshot. Blocks on the disk.
    pub(crate) fn build(&self, view: &View, meta: StateMetaV1) -> io::Result<SnapshotFile> {
        let file = self.disk.create(BUILD_NAME)?;
        let mut writer = Writer::new(file.clone(), meta.clone())?;
        if meta.applied.is_some() {
            view.rows(|id, row| writer.row(id, row))?;
            view.requests(|number, request| writer.request(number, request))?;
        }
        let bytes = writer.finish()?;
        let name = BUILD_NAME.to_owned();
        self.keep(SnapshotFile { file, name, meta, bytes, unkept: None })
    }

    /// An empty file for a snapshot that a peer sends. No two have one name: what is sent again
    /// must not touch what is being installed.
    pub(crate) fn receive(&self) -> io::Result<Receiving> {
        let number = self.next_received.fetch_add(1, Ordering::Relaxed);
        let name = format!("receive-{number}{TEMPORARY_SUFFIX}");
        let file = self.disk.create(&name)?;
        let disk = Arc::clone(&self.disk);
        Ok(Receiving { file, unkept: Unkept { disk, name, is_kept: AtomicBool::new(false) } })
    }

    /// Checks a received file. Blocks on the disk.
    pub(crate) fn received(&self, receiving: Receiving) -> io::Result<SnapshotFile> {
        let mut snapshot = verified(self.disk.as_ref(), receiving.unkept.name.clone())?;
        snapshot.file.sync()?;
        snapshot.unkept = Some(Arc::new(receiving.unkept));
        Ok(snapshot)
    }

    /// Gives a whole snapshot its name, durably, and lets old ones go.
    pub(crate) fn keep(&self, mut snapshot: SnapshotFile) -> io::Result<SnapshotFile> {
        let (term, index) = snapshot.meta.applied.map_or((0, 0), |id| (id.term, id.index));
        let name = format!("{index:016x}-{term:016x}{SUFFIX}");
        if snapshot.name != name {
            self.disk.rename(&snapshot.name, &name)?;
            if let Some(unkept) = snapshot.unkept.take() {
                unkept.is_kept.store(true, Ordering::Release);
            }
            self.disk.sync_dir()?;
            snapshot.name = name;
        }
        let mut current = self.current.lock();
        let is_newer =
            current.as_ref().is_none_or(|known| applied(&known.meta) <= applied(&snapshot.meta));
        if is_newer {
            *current = Some(snapshot.clone());
        }
        drop(current);
        let mut names: Vec<String> =
            self.disk.list()?.into_iter().filter(|name| name.ends_with(SUFFIX)).collect();
        names.sort_unstable();
        let surplus = names.len().saturating_sub(SNAPSHOTS_KEPT);
        for name in names.iter().take(surplus) {
            self.disk.remove(name)?;
        }
        if surplus > 0 {
            self.disk.sync_dir()?;
        }
        Ok(snapshot)
    }
}

fn applied(meta: &StateMetaV1) -> Option<u64> {
    meta.applied.map(|id| id.index)
}

fn verified(disk: &dyn Disk, name: String) -> io::Result<SnapshotFile> {
    let file = disk.open(&name)?;
    let meta = read(file.as_ref(), |_| Ok(()))?;
    let bytes = file.len()?;
    Ok(SnapshotFile { file, name, meta, bytes, unkept: None })
}
