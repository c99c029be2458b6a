//! What a volume holds, and whether more fits.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::{Errno, ReadWriteFlags, pwritev2};
use tokio::time::Instant;

use super::Full;

/// Time between two measurements of one volume: so many times what the last one took, within bounds.
const MEASURE_PAUSE_FACTOR: u32 = 50;
const MEASURE_PAUSE_MIN: Duration = Duration::from_millis(20);
const MEASURE_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Files, folders and links that a volume with a limit may have: one for so many bytes of the limit,
/// within bounds. So many are looked at in one measurement.
const BYTES_PER_ENTRY: u64 = 4096;
const ENTRIES_MIN: u64 = 16;
const ENTRIES_MAX: u64 = 20_000;
/// What a name, or the file behind it, takes on the disk at most before anything is written.
const ENTRY_BYTES: u64 = 4096;
/// Unit of a file's blocks as the kernel counts them, in bytes.
const BLOCK_BYTES: u64 = 512;

/// What guests leave of every file system: this part of it, Kubernetes' mark for eviction, but at most
/// so many bytes. More than the store wants, which takes no write below a twentieth or 64 MiB.
const RESERVED_PART: u64 = 10;
const RESERVED_BYTES_MAX: u64 = 512 << 20;
/// The same for the files that it can have.
const RESERVED_FILES_MAX: u64 = 64 << 10;

/// Whether growth leaves enough of a file system of `total` bytes, of which `free` are.
fn leaves_room(total: u64, free: u64, growth: u64) -> bool {
    let reserved = (total / RESERVED_PART).min(RESERVED_BYTES_MAX);
    growth == 0 || free >= growth.saturating_add(reserved)
}

/// Whether one more file leaves enough for the node, on a file system that can have `total`; 0 is one
/// that makes room for them as it goes.
fn leaves_files(total: u64, free: u64) -> bool {
    let reserved = (total / RESERVED_PART).min(RESERVED_FILES_MAX);
    total == 0 || free > reserved
}

/// Whether the file system of `file` has room for growth in bytes and for more files. What cannot be
/// asked has.
fn has_room(file: &File, growth: u64, makes_file: bool) -> bool {
    if growth == 0 && !makes_file {
        return true;
    }
    rustix::fs::fstatvfs(file).map_or(true, |space| {
        let bytes = |blocks: u64| blocks.saturating_mul(space.f_frsize);
        leaves_room(bytes(space.f_blocks), bytes(space.f_bavail), growth)
            && (!makes_file || leaves_files(space.f_files, space.f_favail))
    })
}

/// The limited volumes that are mounted now, by their folder.
pub(crate) type Volumes = BTreeMap<PathBuf, Weak<Quota>>;

/// A folder with a limit, shared by all who have it mounted.
#[derive(Debug)]
pub(crate) struct Quota {
    root: PathBuf,
    max: Size,
    state: Mutex<State>,
}

/// What files take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Size {
    bytes: u64,
    /// Files, folders and links.
    entries: u64,
}

impl Size {
    fn plus(self, other: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(other.bytes),
            entries: self.entries.saturating_add(other.entries),
        }
    }

    fn fits(self, max: Self) -> bool {
        self.bytes <= max.bytes && self.entries <= max.entries
    }
}

#[derive(Debug)]
struct State {
    used: Size,
    /// Folders elsewhere with other names of the volume's files; what is written there counts.
    others: Vec<PathBuf>,
    /// When it may be measured again.
    measurable: Instant,
    /// Files that guests have open to write: those without a name take space all the same.
    open: Vec<Weak<File>>,
    /// Files in `open` at which those that were closed are looked for.
    open_mark: usize,
}

/// Files that may be in [`State::open`] before it is looked through.
const OPEN_MARK_MIN: usize = 64;

impl Quota {
    /// Measures what is there. Blocks on the file system.
    pub(crate) fn new(root: &Path, bytes_max: u64) -> Arc<Self> {
        let root = root.canonicalize().unwrap_or_else(|_| root.to_owned());
        let entries = (bytes_max / BYTES_PER_ENTRY).clamp(ENTRIES_MIN, ENTRIES_MAX);
        let max = Size { bytes: bytes_max, entries };
        let mut state = State {
            used: Size::default(),
            others: Vec::new(),
            measurable: Instant::now(),
            open: Vec::new(),
            open_mark: OPEN_MARK_MIN,
        };
        state.measure(&root);
        Arc::new(Self { root, max, state: Mutex::new(state) })
    }

    /// Whether a mount with this limit shares its bytes.
    pub(crate) fn is_of(&self, bytes_max: u64) -> bool {
        self.max.bytes == bytes_max
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
            state.measure(&self.root);
        }
    }

    fn holds(&self, path: &Path) -> bool {
        path.starts_with(&self.root)
            || self.state.lock().others.iter().any(|other| path.starts_with(other))
    }

    fn grow(&self, by: Size) -> bool {
        if by == Size::default() {
            return true;
        }
        let mut state = self.state.lock();
        if !state.used.plus(by).fits(self.max) && Instant::now() >= state.measurable {
            state.measure(&self.root);
        }
        let grown = state.used.plus(by);
        let is_granted = grown.fits(self.max);
        if is_granted {
            state.used = grown;
        }
        is_granted
    }

    fn shrink(&self, by: Size) {
        let used = &mut self.state.lock().used;
        used.bytes = used.bytes.saturating_sub(by.bytes);
        used.entries = used.entries.saturating_sub(by.entries);
    }

    /// So much was cut off a file.
    pub(super) fn give_back(&self, bytes: u64) {
        self.shrink(Size { bytes, entries: 0 });
    }

    /// A guest may write to this file, also once its name is gone.
    pub(super) fn opened(&self, file: &Arc<File>) {
        let mut state = self.state.lock();
        if state.open.len() >= state.open_mark {
            state.forget_closed();
            state.open_mark = state.open.len().saturating_mul(2).max(OPEN_MARK_MIN);
        }
        state.open.push(Arc::downgrade(file));
    }
}

impl State {
    fn measure(&mut self, root: &Path) {
        self.forget_closed();
        let start = Instant::now();
        let roots = self.others.iter().map(PathBuf::as_path).chain([root]);
        self.used = measure(roots, &self.open);
        let pause = start.elapsed().saturating_mul(MEASURE_PAUSE_FACTOR);
        self.measurable = Instant::now() + pause.clamp(MEASURE_PAUSE_MIN, MEASURE_PAUSE_MAX);
    }

    fn forget_closed(&mut self) {
        self.open.retain(|file| file.strong_count() > 0);
    }
}

/// All files below `roots`, and those in `open` that have no name any more. What cannot be read counts
/// nothing, more than [`ENTRIES_MAX`] files are too many for any limit.
fn measure<'a>(roots: impl Iterator<Item = &'a Path>, open: &[Weak<File>]) -> Size {
    let mut size = Size::default();
    // Files with several names, or with none and several handles, are counted once.
    let mut seen = BTreeSet::new();
    let mut count = |meta: &Metadata, size: &mut Size| {
        if meta.is_file() && (meta.nlink() == 1 || seen.insert((meta.dev(), meta.ino()))) {
            size.bytes = size.bytes.saturating_add(meta.len());
        }
    };
    let mut folders: Vec<_> = roots.map(Path::to_owned).collect();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            size.entries += 1;
            if size.entries > ENTRIES_MAX {
                return Size { bytes: u64::MAX, entries: u64::MAX };
            }
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => folders.push(entry.path()),
                Ok(meta) => count(&meta, &mut size),
                Err(_) => {}
            }
        }
    }
    for file in open.iter().filter_map(Weak::upgrade) {
        match file.metadata() {
            Ok(meta) if meta.nlink() == 0 => count(&meta, &mut size),
            _ => {}
        }
    }
    size
}

/// A name that was granted; given back unless it is kept.
#[derive(Debug)]
pub(super) struct Entry(Option<Arc<Quota>>);

impl Entry {
    const SIZE: Size = Size { bytes: 0, entries: 1 };

    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(quota) = &self.0 {
            quota.shrink(Self::SIZE);
        }
    }
}

/// The quotas that hold for one container.
#[derive(Debug, Clone, Default)]
pub(crate) struct Quotas(pub(crate) Vec<Arc<Quota>>);

impl Quotas {
    /// The quota of the folder that an open file is in.
    pub(super) fn of(&self, file: &File) -> Option<Arc<Quota>> {
        if self.0.is_empty() {
            return None;
        }
        match std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) {
            Ok(path) => self.0.iter().find(|quota| quota.holds(&path)).cloned(),
            // Better a wrong limit than none.
            Err(_) => self.0.first().cloned(),
        }
    }

    /// Asks for a name in a folder.
    pub(super) fn make(&self, folder: &File) -> Result<Entry, Full> {
        let quota = self.of(folder);
        let is_granted = has_room(folder, ENTRY_BYTES, true)
            && quota.as_ref().is_none_or(|quota| quota.grow(Entry::SIZE));
        if is_granted { Ok(Entry(quota)) } else { Err(Full) }
    }

    /// Asks for a write from `start` to `end`.
    pub(super) fn write(&self, file: &File, start: u64, end: u64) -> Result<(), Full> {
        let quota = self.of(file);
        if grow_to(file, quota.as_deref(), start, end, 0) { Ok(()) } else { Err(Full) }
    }

    /// Asks for another length; what is cut off is given back once it is gone ([`Cut::done`]).
    pub(super) fn resize(&self, file: &File, to: u64) -> Result<Cut, Full> {
        let (quota, length) = (self.of(file), length(file));
        if !grow_to(file, quota.as_deref(), length, to, 0) {
            return Err(Full);
        }
        Ok(Cut { quota, bytes: length.saturating_sub(to) })
    }

    /// Writes as a guest wants it: at a position, or at the end. Blocks on the file system.
    pub(super) fn write_now(
        &self,
        file: &File,
        position: Option<u64>,
        bytes: &[u8],
    ) -> io::Result<usize> {
        let start = position.unwrap_or_else(|| length(file));
        let end = start.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        self.write(file, start, end).map_err(|Full| io::Error::from(Errno::NOSPC))?;
        if let Some(position) = position {
            return file.write_at(bytes, position);
        }
        match pwritev2(file, &[io::IoSlice::new(bytes)], 0, ReadWriteFlags::APPEND) {
            // Kernels and file systems that cannot append in one step.
            Err(Errno::NOSYS | Errno::NOTSUP) => file.write_at(bytes, start),
            written => Ok(written?),
        }
    }
}

/// What a shorter length sets free.
#[derive(Debug)]
pub(super) struct Cut {
    quota: Option<Arc<Quota>>,
    bytes: u64,
}

impl Cut {
    pub(super) fn done(self) {
        if let Some(quota) = self.quota {
            quota.give_back(self.bytes);
        }
    }
}

/// Asks the file system and the quota for a write from `start` to `end` to a file that is, or soon
/// will be, `granted` bytes long.
pub(super) fn grow_to(
    file: &File,
    quota: Option<&Quota>,
    start: u64,
    end: u64,
    granted: u64,
) -> bool {
    let meta = file.metadata().ok();
    // A device takes what is written to it, and no room.
    if meta.as_ref().is_some_and(|meta| !meta.is_file()) {
        return true;
    }
    let length = meta.as_ref().map_or(0, Metadata::len);
    let growth = end.saturating_sub(length.max(granted));
    // A hole takes nothing of the disk until it is filled.
    let is_sparse = meta.is_some_and(|meta| meta.blocks().saturating_mul(BLOCK_BYTES) < length);
    let filled = if is_sparse { end.min(length).saturating_sub(start) } else { 0 };
    let is_possible = has_room(file, growth.saturating_add(filled), false) || is_kernels(file);
    is_possible && quota.is_none_or(|quota| quota.grow(Size { bytes: growth, entries: 0 }))
}

/// Whether the file is one of sysfs, where devices are set by writing, which takes no room.
fn is_kernels(file: &File) -> bool {
    const SYSFS_MAGIC: rustix::fs::FsWord = 0x6265_6572;
    rustix::fs::fstatfs(file).is_ok_and(|system| system.f_type == SYSFS_MAGIC)
}

/// Length of an open file in bytes.
pub(super) fn length(file: &File) -> u64 {
    file.metadata().map_or(0, |meta| meta.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(bytes: u64) -> Size {
        Size { bytes, entries: 0 }
    }

    #[tokio::test(start_paused = true)]
    async fn deleted_files_give_their_space_back_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let path = dir.path().join("sub/a");
        std::fs::write(&path, [0; 60]).unwrap();
        let quota = Quota::new(dir.path(), 100);
        assert!(quota.grow(bytes(40)) && !quota.grow(bytes(1)));
        std::fs::remove_file(path).unwrap();
        assert!(!quota.grow(bytes(1)), "it was measured a moment ago");
        tokio::time::advance(MEASURE_PAUSE_MIN).await;
        assert!(quota.grow(bytes(100)) && !quota.grow(bytes(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_without_a_name_counts_until_it_is_closed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, [0; 60]).unwrap();
        let quota = Quota::new(dir.path(), 100);
        let file = Arc::new(File::options().write(true).open(&path).unwrap());
        quota.opened(&file);
        std::fs::remove_file(path).unwrap();
        tokio::time::advance(MEASURE_PAUSE_MIN).await;
        assert!(!quota.grow(bytes(41)) && quota.grow(bytes(40)));
        drop(file);
        tokio::time::advance(MEASURE_PAUSE_MIN).await;
        assert!(quota.grow(bytes(100)));
    }

    #[test]
    fn a_file_with_two_names_counts_once() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), [0; 60]).unwrap();
        std::fs::hard_link(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert_eq!(measure(std::iter::once(dir.path()), &[]), Size { bytes: 60, entries: 2 });
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
        assert!(quotas.resize(&file, 80).is_ok(), "it counts once");
        assert!(quotas.resize(&file, 101).is_err());
        tokio::time::advance(MEASURE_PAUSE_MAX).await;
        // What is made beside it is of the volume as well.
        std::fs::write(alone.path().join("more"), [0; 40]).unwrap();
        let inside = open(volume.path().join("g"));
        assert!(quotas.resize(&inside, 41).is_err() && quotas.resize(&inside, 1).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_of_files_is_bounded_and_a_failure_costs_none() {
        let dir = tempfile::tempdir().unwrap();
        let quotas = Quotas(vec![Quota::new(dir.path(), 1)]);
        let folder = File::open(dir.path()).unwrap();
        for _ in 0..100 {
            drop(quotas.make(&folder).unwrap());
        }
        for _ in 0..ENTRIES_MIN {
            quotas.make(&folder).unwrap().keep();
        }
        assert!(quotas.make(&folder).is_err());
        assert_eq!(Quota::new(dir.path(), 1 << 20).max.entries, 256);
        assert_eq!(Quota::new(dir.path(), 1 << 40).max.entries, ENTRIES_MAX);
    }

    #[test]
    fn a_part_of_every_file_system_is_the_nodes() {
        const MIB: u64 = 1 << 20;
        assert!(leaves_room(100 * MIB, 30 * MIB, 20 * MIB));
        assert!(!leaves_room(100 * MIB, 30 * MIB, 20 * MIB + 1));
        assert!(!leaves_room(100 * MIB, 3 * MIB, 1), "it is too full already");
        assert!(leaves_room(100 * MIB, 0, 0), "what is there can be written again");
        assert!(leaves_room(1 << 40, 513 * MIB, MIB), "the part is bounded");
        assert!(leaves_files(1000, 101) && !leaves_files(1000, 100));
        assert!(leaves_files(0, 0), "a file system without a list of files");
    }

    #[test]
    fn only_growth_counts_and_holes_are_growth() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, [0; 60]).unwrap();
        let quotas = Quotas(vec![Quota::new(dir.path(), 100)]);
        let file = File::options().write(true).open(path).unwrap();
        for _ in 0..10 {
            assert!(quotas.write(&file, 0, 60).is_ok());
        }
        assert!(quotas.write(&file, 100, 101).is_err(), "far past the end");
        assert!(quotas.resize(&file, 101).is_err());
        let elsewhere = tempfile::tempfile().unwrap();
        assert!(quotas.write(&elsewhere, 0, 1 << 10).is_ok(), "no limited volume");
    }

    #[test]
    fn what_is_cut_off_is_free_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let quotas = Quotas(vec![Quota::new(dir.path(), 100)]);
        let file = File::create(dir.path().join("a")).unwrap();
        for _ in 0..10 {
            assert_eq!(quotas.write_now(&file, Some(0), &[1; 90]).unwrap(), 90);
            let cut = quotas.resize(&file, 10).unwrap();
            file.set_len(10).unwrap();
            cut.done();
        }
        let full = quotas.write_now(&file, None, &[1; 91]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(quotas.write_now(&file, None, &[1; 90]).unwrap(), 90);
        assert_eq!(length(&file), 100);
    }
}
