//! Size limits of volumes, for what guests write through WASI 0.2 (and preview 1, which is on top).
//!
//! Data in: writes of guests to files below a limited folder. Data out: the write, or
//! `insufficient-space`, as on a file system of that size.
//!
//! Growth is counted as it happens. Only when a volume seems full is it measured, because files may
//! been deleted meanwhile. A volume without a limit is as large as its file system, less what is kept
//! for the node.
//!
//! # Invariants
//!
//! - Growth is granted before it happens: a volume is never beyond its limit by guests' writes.
//! - Guests never fill a file system: the node writes there as well, and its store ends it when it
//!   cannot.
//! - A guest that writes to a full volume cannot keep the node busy with measuring it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, Resource, ResourceTable};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView as _};
use wasmtime_wasi::p2::FsResult;
use wasmtime_wasi::p2::bindings::filesystem::types::{ErrorCode, Host as _, HostDescriptor};
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::Pollable;
use wasmtime_wasi_io::streams::{DynOutputStream, OutputStream, StreamError, StreamResult};

use crate::guest::Guest;

/// The interface whose writing functions are replaced, as `wasmtime-wasi` names it.
const INTERFACE: &str = "wasi:filesystem/types@0.2.12";
/// Shortest time between two measurements of one volume.
const MEASURE_PAUSE: Duration = Duration::from_secs(1);
/// Files and folders looked at in one measurement; a volume with more counts as full.
const ENTRIES_MAX: usize = 20_000;

/// What guests leave of every file system: this part of it, Kubernetes' mark for eviction, but at most
/// so many bytes. More than the store wants, which takes no write below a twentieth or 64 MiB.
const RESERVED_PART: u64 = 10;
const RESERVED_BYTES_MAX: u64 = 512 << 20;

/// Whether growth leaves enough of a file system of `total` bytes, of which `free` are.
fn leaves_room(total: u64, free: u64, growth: u64) -> bool {
    let reserved = (total / RESERVED_PART).min(RESERVED_BYTES_MAX);
    growth == 0 || free >= growth.saturating_add(reserved)
}

/// Whether the file system of `file` has room for its growth. What cannot be asked has.
fn has_room(file: &File, growth: u64) -> bool {
    rustix::fs::fstatvfs(file).map_or(true, |space| {
        let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
        leaves_room(bytes(space.f_blocks), bytes(space.f_bavail), growth)
    })
}

/// The limited volumes that are mounted now, by their folder.
pub(crate) type Volumes = BTreeMap<PathBuf, Weak<Quota>>;

/// A folder with a limit, shared by all who have it mounted.
#[derive(Debug)]
pub(crate) struct Quota {
    root: PathBuf,
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    used: u64,
    measured: Instant,
    /// Folders elsewhere with other names of the volume's files; what is written there counts.
    others: Vec<PathBuf>,
}

impl Quota {
    /// Measures what is there. Blocks on the file system.
    pub(crate) fn new(root: &Path, bytes_max: u64) -> Arc<Self> {
        let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
        let used = measure(std::iter::once(&root));
        let state = State { used, measured: Instant::now(), others: Vec::new() };
        Arc::new(Self { root, bytes_max, state: Mutex::new(state) })
    }

    /// Whether a mount with this limit shares its bytes.
    pub(crate) fn is_of(&self, bytes_max: u64) -> bool {
        self.bytes_max == bytes_max
    }

    /// Counts what is below the folder of a mount, if it is not the volume's own. Blocks on the file
    /// system.
    pub(crate) fn include(&self, folder: &Path) {
        let Ok(folder) = folder.canonicalize() else { return };
        let mut state = self.state.lock();
        if !folder.starts_with(&self.root) && !state.others.contains(&folder) {
            // Folders of runs that are over are gone.
            state.others.retain(|other| other.exists());
            state.others.push(folder);
            state.used = measure(state.others.iter().chain([&self.root]));
        }
    }

    fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.root)
            || self.state.lock().others.iter().any(|other| path.starts_with(other))
    }

    fn grow(&self, bytes: u64) -> bool {
        let mut state = self.state.lock();
        let has_room = |used: u64| used.saturating_add(bytes) <= self.bytes_max;
        if !has_room(state.used) && state.measured.elapsed() >= MEASURE_PAUSE {
            state.used = measure(state.others.iter().chain([&self.root]));
            state.measured = Instant::now();
        }
        let is_granted = has_room(state.used);
        if is_granted {
            state.used = state.used.saturating_add(bytes);
        }
        is_granted
    }
}

/// Length of all files below `roots`, in bytes; one with several names counts once. What cannot be
/// read counts nothing.
fn measure<'a>(roots: impl Iterator<Item = &'a PathBuf>) -> u64 {
    let (mut folders, mut bytes, mut entries) = (roots.cloned().collect::<Vec<_>>(), 0_u64, 0);
    let mut linked = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            entries += 1;
            if entries > ENTRIES_MAX {
                return u64::MAX;
            }
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) if meta.nlink() > 1 && !linked.insert((meta.dev(), meta.ino())) => {}
                Ok(meta) => bytes = bytes.saturating_add(meta.len()),
                Err(_) => {}
            }
        }
    }
    bytes
}

/// The quotas that hold for one container.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quotas(pub(crate) Vec<Arc<Quota>>);

impl Quotas {
    /// The quota of the folder that an open file is in.
    fn of(&self, file: &File) -> Option<Arc<Quota>> {
        if self.0.is_empty() {
            return None;
        }
        match std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) {
            Ok(path) => self.0.iter().find(|quota| quota.holds(&path)).cloned(),
            // Better a wrong limit than none.
            Err(_) => self.0.first().cloned(),
        }
    }

    /// Asks for growth of a file that shall be written up to `end`.
    fn extend(&self, file: &File, end: u64) -> Result<(), ErrorCode> {
        let growth = end.saturating_sub(length(file));
        let is_granted =
            has_room(file, growth) && self.of(file).is_none_or(|quota| quota.grow(growth));
        if is_granted { Ok(()) } else { Err(ErrorCode::InsufficientSpace) }
    }
}

fn length(file: &File) -> u64 {
    file.metadata().map_or(0, |meta| meta.len())
}

fn file(table: &ResourceTable, descriptor: &Resource<Descriptor>) -> Option<Arc<File>> {
    match table.get(descriptor) {
        Ok(Descriptor::File(file)) => Some(Arc::clone(&file.file)),
        // Whoever is asked next knows what is wrong.
        _ => None,
    }
}

/// Replaces the functions that make files larger.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    let mut types = linker.instance(INTERFACE)?;
    types.func_wrap_async(
        "[method]descriptor.write",
        |mut store: StoreContextMut<'_, Guest>, (fd, bytes, offset): (_, Vec<u8>, u64)| {
            Box::new(async move {
                let end = offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
                let guest = store.data_mut();
                if let Err(code) = guest.check_quota(&fd, end) {
                    return Ok((Err(code),));
                }
                let written = guest.filesystem().write(fd, bytes, offset).await;
                Ok((told(guest, written)?,))
            })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.set-size",
        |mut store: StoreContextMut<'_, Guest>, (fd, size): (_, u64)| {
            Box::new(async move {
                let guest = store.data_mut();
                if let Err(code) = guest.check_quota(&fd, size) {
                    return Ok((Err(code),));
                }
                let set = guest.filesystem().set_size(fd, size).await;
                Ok((told(guest, set)?,))
            })
        },
    )?;
    types.func_wrap(
        "[method]descriptor.write-via-stream",
        |mut store: StoreContextMut<'_, Guest>, (fd, offset): (Resource<Descriptor>, u64)| {
            let guest = store.data_mut();
            let file = file(guest.filesystem().table, &fd);
            let stream = guest.filesystem().write_via_stream(fd, offset);
            let stream = guest.counted(stream, file, Some(offset))?;
            Ok((told(guest, stream)?,))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.append-via-stream",
        |mut store: StoreContextMut<'_, Guest>, (fd,): (Resource<Descriptor>,)| {
            let guest = store.data_mut();
            let file = file(guest.filesystem().table, &fd);
            let stream = guest.filesystem().append_via_stream(fd);
            let stream = guest.counted(stream, file, None)?;
            Ok((told(guest, stream)?,))
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The error as guests hear it.
fn told<T>(guest: &mut Guest, result: FsResult<T>) -> wasmtime::Result<Result<T, ErrorCode>> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => guest.filesystem().convert_error_code(error).map(Err),
    }
}

impl Guest {
    fn check_quota(&mut self, fd: &Resource<Descriptor>, end: u64) -> Result<(), ErrorCode> {
        match file(self.filesystem().table, fd) {
            Some(file) => self.quotas().extend(&file, end),
            None => Ok(()),
        }
    }

    /// Puts a counting stream into the place of `stream`.
    fn counted(
        &mut self,
        stream: FsResult<Resource<DynOutputStream>>,
        file: Option<Arc<File>>,
        position: Option<u64>,
    ) -> wasmtime::Result<FsResult<Resource<DynOutputStream>>> {
        let (Ok(stream), Some(file)) = (&stream, file) else { return Ok(stream) };
        let quota = self.quotas().of(&file);
        let place = self.table().get_mut(stream)?;
        let inner = std::mem::replace(place, Box::new(Closed));
        *place = Box::new(Counted { inner, quota, file, position, end: 0 });
        Ok(Ok(same(stream)))
    }
}

fn same(stream: &Resource<DynOutputStream>) -> Resource<DynOutputStream> {
    Resource::new_own(stream.rep())
}

/// A stream to a file.
struct Counted {
    inner: DynOutputStream,
    /// `None` in a volume without a limit.
    quota: Option<Arc<Quota>>,
    file: Arc<File>,
    /// Where the next write goes; `None` appends.
    position: Option<u64>,
    /// End of what was granted so far: the file may be longer soon than it is now.
    end: u64,
}

#[async_trait]
impl Pollable for Counted {
    async fn ready(&mut self) {
        self.inner.ready().await;
    }
}

#[async_trait]
impl OutputStream for Counted {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let length = length(&self.file).max(self.end);
        let end = self.position.unwrap_or(length).saturating_add(count);
        let growth = end.saturating_sub(length);
        let quota = self.quota.as_ref();
        if !has_room(&self.file, growth) || !quota.is_none_or(|quota| quota.grow(growth)) {
            let full = io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
            return Err(StreamError::LastOperationFailed(full.into()));
        }
        self.end = self.end.max(end);
        if let Some(position) = &mut self.position {
            *position = end;
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.inner.flush()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.inner.check_write()
    }

    async fn cancel(&mut self) {
        self.inner.cancel().await;
    }
}

/// Stands in a table's slot for a moment.
struct Closed;

#[async_trait]
impl Pollable for Closed {
    async fn ready(&mut self) {}
}

impl OutputStream for Closed {
    fn write(&mut self, _: Bytes) -> StreamResult<()> {
        Err(StreamError::Closed)
    }

    fn flush(&mut self) -> StreamResult<()> {
        Err(StreamError::Closed)
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Err(StreamError::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn deleted_files_give_their_space_back_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let path = dir.path().join("sub/a");
        std::fs::write(&path, [0; 60]).unwrap();
        let quota = Quota::new(dir.path(), 100);
        assert!(quota.grow(40) && !quota.grow(1));
        std::fs::remove_file(path).unwrap();
        assert!(!quota.grow(1), "it was measured a moment ago");
        tokio::time::advance(MEASURE_PAUSE).await;
        assert!(quota.grow(100) && !quota.grow(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_is_mounted_alone_counts_for_its_volume() {
        let (volume, alone) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(volume.path().join("f"), [0; 60]).unwrap();
        std::fs::hard_link(volume.path().join("f"), alone.path().join("f")).unwrap();
        let quotas = Quotas(vec![Quota::new(volume.path(), 100)]);
        quotas.0[0].include(volume.path());
        quotas.0[0].include(alone.path());
        let open = |path: PathBuf| File::options().create(true).append(true).open(path).unwrap();
        let file = open(alone.path().join("f"));
        assert!(quotas.extend(&file, 80).is_ok(), "it counts once");
        assert!(quotas.extend(&file, 101).is_err());
        tokio::time::advance(MEASURE_PAUSE).await;
        // What is made beside it is of the volume as well.
        std::fs::write(alone.path().join("more"), [0; 40]).unwrap();
        let inside = open(volume.path().join("g"));
        assert!(quotas.extend(&inside, 41).is_err() && quotas.extend(&inside, 1).is_err());
    }

    #[test]
    fn a_part_of_every_file_system_is_the_nodes() {
        const MIB: u64 = 1 << 20;
        assert!(leaves_room(100 * MIB, 30 * MIB, 20 * MIB));
        assert!(!leaves_room(100 * MIB, 30 * MIB, 20 * MIB + 1));
        assert!(!leaves_room(100 * MIB, 3 * MIB, 1), "it is too full already");
        assert!(leaves_room(100 * MIB, 0, 0), "what is there can be written again");
        assert!(leaves_room(1 << 40, 513 * MIB, MIB), "the part is bounded");
    }

    #[test]
    fn only_growth_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, [0; 60]).unwrap();
        let quotas = Quotas(vec![Quota::new(dir.path(), 100)]);
        let file = File::options().write(true).open(path).unwrap();
        for _ in 0..10 {
            assert!(quotas.extend(&file, 60).is_ok());
        }
        assert!(quotas.extend(&file, 101).is_err());
        let elsewhere = tempfile::tempfile().unwrap();
        assert!(quotas.extend(&elsewhere, 1 << 10).is_ok(), "no limited volume");
    }
}
