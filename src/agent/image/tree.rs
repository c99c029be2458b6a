//! From the layers of an image to a folder with its files.
//!
//! Data in: layers, checked against their digests but made by anybody. Data out: a folder that only
//! this agent writes to, and that guests see read-only.
//!
//! # Invariants
//!
//! - Nothing is made, changed or removed outside of the folder: every path is walked from its
//!   handle, and no link on the way is followed.
//! - Links are made as the image has them. They lead guests nowhere outside of the mount, and the
//!   agent follows none that leaves it.
//! - What an image may cost has a limit before it costs it: entries, bytes, names, looks, room.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, linkat, mkdirat, openat, statat, symlinkat,
};
use rustix::io::Errno;
use tokio_util::sync::CancellationToken;

use crate::agent::beneath::{self, Held, Missing};
use crate::agent::dirs::make_one;
use crate::agent::image::manifest::Form;
use crate::agent::image::tar::{Archive, Entry, Kind, damaged};
use crate::agent::image::unpack;
use crate::rt::Room;

/// In front of the name of something that a lower layer has and this one takes away.
const WHITEOUT: &[u8] = b".wh.";
/// Takes away all that lower layers have in a folder.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// In front of names that some tools keep for themselves.
const WHITEOUT_OWN: &[u8] = b".wh..wh.";
/// Longest path in an image, in bytes, and in names; longest name.
const PATH_BYTES_MAX: usize = 4096;
const NAME_BYTES_MAX: usize = 255;
const DEPTH_MAX: usize = 64;
/// Bytes copied at a time.
const COPY_BYTES: usize = 64 * 1024;
/// How much may be read for each byte that may be written, and beside that: what is skipped costs time.
const READ_PER_BYTE: u64 = 2;
const READ_BYTES_FREE: u64 = 64 << 20;
const FILE_MODE: u32 = 0o400;
const EXECUTABLE_MODE: u32 = 0o500;
const FOLDER_MODE: u32 = 0o700;

/// What one image may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    /// Files, folders, links and whiteouts of all layers.
    pub(super) entries: u32,
    /// Bytes of all layers, unpacked.
    pub(super) bytes: u64,
    /// Bytes of all names in one layer.
    pub(super) names: usize,
    /// Things looked at because a layer takes some away.
    pub(super) looks: u32,
}

/// Large enough for models and file systems of containers; small enough to end.
pub(super) const LIMITS: Limits =
    Limits { entries: 200_000, bytes: 16 << 30, names: 32 << 20, looks: 2_000_000 };

/// Makes `root`, which must not exist, of layers: files with what they are, the lowest first. Gives
/// the bytes that were written.
///
/// # Errors
///
/// `InvalidData` when the layers cannot be used, or would cost too much; `StorageFull` when too
/// little room would be left; `Interrupted` after `cancel`; all others are the disk's. What was
/// made stays: the caller removes it.
pub(super) fn unpack(
    layers: &[(PathBuf, Form)],
    root: &Path,
    limits: Limits,
    cancel: &CancellationToken,
) -> io::Result<u64> {
    make_one(root)?;
    let held = beneath::open(root, Path::new(""), Missing::Refuse)?;
    let path = held.path();
    let (cancel, bytes) = (cancel.clone(), limits.bytes);
    let mut room = Room::new(&path);
    room.take(0)?;
    let reads = READ_PER_BYTE.saturating_mul(bytes).saturating_add(READ_BYTES_FREE);
    let reads = Rc::new(Cell::new(reads));
    let mut tree = Tree { _root: held, path, left: limits, reads, room, cancel, made: None };
    for (at, (file, form)) in layers.iter().enumerate() {
        // Under the lowest layer there is nothing to take away.
        tree.made = (at > 0).then(BTreeSet::new);
        tree.left.names = limits.names;
        match form {
            Form::Archive => tree.archive(file)?,
            Form::File(name) => tree.file(file, name)?,
        }
    }
    Ok(bytes - tree.left.bytes)
}

/// A folder that is being filled.
struct Tree {
    _root: Held,
    /// Leads to the folder while it is held.
    path: PathBuf,
    left: Limits,
    /// Bytes that may be read of all layers together, when they are unpacked.
    reads: Rc<Cell<u64>>,
    room: Room,
    cancel: CancellationToken,
    /// Paths of the present layer; `None` in the lowest.
    made: Option<BTreeSet<PathBuf>>,
}

/// What is read of a layer, also of what is skipped: bounded, and until it is cancelled.
struct Metered {
    content: Box<dyn Read>,
    left: Rc<Cell<u64>>,
    cancel: CancellationToken,
}

impl Read for Metered {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("nobody wants the image any more"));
        }
        let count = self.content.read(buffer)?;
        let left = self.left.get().checked_sub(count as u64);
        self.left.set(left.ok_or_else(|| {
            refused("the image's layers are larger than a volume may be".to_owned())
        })?);
        Ok(count)
    }
}

fn refused(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Tree {
    /// Unpacks a layer.
    fn archive(&mut self, layer: &Path) -> io::Result<()> {
        let (content, _) = unpack::open(layer)?;
        let most = self.left.bytes.saturating_add(1);
        let content: Box<dyn Read> = Box::new(content.take(most));
        let (left, cancel) = (Rc::clone(&self.reads), self.cancel.clone());
        let mut archive = Archive::new(Metered { content, left, cancel });
        let unpacked = self.entries(&mut archive);
        // A reader cannot say so: whoever copies from it would try again.
        if self.cancel.is_cancelled() { Err(io::ErrorKind::Interrupted.into()) } else { unpacked }
    }

    fn entries(&mut self, archive: &mut Archive<Metered>) -> io::Result<()> {
        while let Some(entry) = archive.next()? {
            self.count(&entry.path)?;
            let Some(path) = plain(&entry.path)? else { continue };
            self.put(&path, &entry, archive)?;
        }
        Ok(())
    }

    /// Puts a layer that is one file into its place.
    fn file(&mut self, layer: &Path, name: &Path) -> io::Result<()> {
        self.count(name)?;
        if name.is_absolute() {
            return Err(refused(format!("the image's file {} must be relative", name.display())));
        }
        let Some(path) = plain(name)? else {
            return Err(refused("a file of the image has no name".to_owned()));
        };
        let (parent, name) = self.parent(&path)?;
        self.remove(&parent, &path)?;
        // The same bytes, which nobody writes to any more, need not be there twice.
        match linkat(CWD, layer, &parent, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::XDEV | Errno::PERM | Errno::MLINK | Errno::OPNOTSUPP) => {
                self.write(&parent, name, false, &mut File::open(layer)?)?;
            }
            Err(err) => return Err(err.into()),
        }
        self.note(path);
        Ok(())
    }

    fn put(&mut self, path: &Path, entry: &Entry, content: &mut dyn Read) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default().as_encoded_bytes();
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.take_away(path, name, hidden);
        }
        let (parent, name) = self.parent(path)?;
        match entry.kind {
            Kind::Folder => {
                let mode = Mode::from_raw_mode(FOLDER_MODE);
                if mkdirat(&parent, name, mode) == Err(Errno::EXIST) && !is_folder(&parent, name) {
                    self.remove(&parent, path)?;
                    mkdirat(&parent, name, mode)?;
                }
            }
            Kind::File => {
                self.remove(&parent, path)?;
                self.write(&parent, name, entry.is_executable, content)?;
            }
            Kind::Link => {
                let target = entry.target.as_os_str().as_encoded_bytes();
                if target.is_empty() || target.len() > PATH_BYTES_MAX || target.contains(&0) {
                    return Err(damaged("a link that leads to no path"));
                }
                self.remove(&parent, path)?;
                symlinkat(&entry.target, &parent, name)?;
            }
            Kind::HardLink => {
                let missing = || {
                    let (path, target) = (path.display(), entry.target.display());
                    refused(format!(
                        "{path} in the image is to be the file {target}, which is none"
                    ))
                };
                let target = plain(&entry.target)?.ok_or_else(missing)?;
                if target == path {
                    return Err(missing());
                }
                let held = beneath::open(&self.path, &target, Missing::Refuse);
                let held = held.ok().filter(|held| !held.is_folder).ok_or_else(missing)?;
                self.remove(&parent, path)?;
                let linked = linkat(CWD, held.path(), &parent, name, AtFlags::SYMLINK_FOLLOW);
                linked.map_err(|err| match err {
                    Errno::MLINK => refused("a file of the image has too many names".to_owned()),
                    other => other.into(),
                })?;
            }
            // A guest could not open it.
            Kind::Special => return Ok(()),
        }
        self.note(path.to_owned());
        Ok(())
    }

    fn take_away(&mut self, path: &Path, name: &[u8], hidden: &[u8]) -> io::Result<()> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if name == OPAQUE {
            return self.hide_content(parent);
        }
        if name.starts_with(WHITEOUT_OWN) {
            return Ok(());
        }
        let hidden = Path::new(<OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(hidden));
        match plain(&parent.join(hidden))? {
            Some(hidden) if self.made.is_some() => self.hide(&hidden),
            _ => Ok(()),
        }
    }

    /// Removes what lower layers have at `path`.
    fn hide(&mut self, path: &Path) -> io::Result<()> {
        self.look()?;
        let is_of_layer = self.made.as_ref().is_none_or(|made| {
            made.range(path.to_owned()..).next().is_some_and(|first| first.starts_with(path))
        });
        if is_of_layer {
            return self.hide_content(path);
        }
        let above = path.parent().unwrap_or(Path::new(""));
        match beneath::open(&self.path, above, Missing::Refuse) {
            Ok(parent) if parent.is_folder => self.remove(&parent.handle, path),
            // There is nothing to take away.
            _ => Ok(()),
        }
    }

    /// Removes what lower layers have in the folder `path`.
    fn hide_content(&mut self, path: &Path) -> io::Result<()> {
        if self.made.is_none() {
            return Ok(());
        }
        let Ok(folder) = beneath::open(&self.path, path, Missing::Refuse) else { return Ok(()) };
        if !folder.is_folder {
            return Ok(());
        }
        for child in std::fs::read_dir(folder.path())? {
            self.hide(&path.join(child?.file_name()))?;
        }
        Ok(())
    }

    /// The folder that `path` is in, made if it is missing, and its name there.
    fn parent<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let on_the_way = |cause: io::Error| {
            let is_wrong = [Errno::LOOP, Errno::NOTDIR]
                .iter()
                .any(|wrong| cause.raw_os_error() == Some(wrong.raw_os_error()));
            if !is_wrong {
                return cause;
            }
            refused(format!("{} in the image is below a link or a file", path.display()))
        };
        let held = beneath::open(&self.path, above, Missing::MakeFolder).map_err(on_the_way)?;
        if !held.is_folder {
            return Err(on_the_way(Errno::NOTDIR.into()));
        }
        Ok((held.handle, name))
    }

    fn write(
        &mut self,
        parent: &OwnedFd,
        name: &OsStr,
        is_executable: bool,
        content: &mut dyn Read,
    ) -> io::Result<()> {
        let flags =
            (OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC) | OFlags::WRONLY;
        let mode = if is_executable { EXECUTABLE_MODE } else { FILE_MODE };
        let mut file = File::from(openat(parent, name, flags, Mode::from_raw_mode(mode))?);
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            let count = content.read(&mut buffer)?;
            let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else {
                return Ok(());
            };
            self.spend(count as u64)?;
            file.write_all(bytes)?;
        }
    }

    /// Removes what is at `path`, of which the folder above is held, with all that is in it.
    fn remove(&self, parent: &OwnedFd, path: &Path) -> io::Result<()> {
        let name = path.file_name().unwrap_or_default();
        let removed = match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) if is_folder(parent, name) => {
                let fd = std::os::fd::AsRawFd::as_raw_fd(parent);
                let place = PathBuf::from(format!("/proc/self/fd/{fd}")).join(name);
                // It does not follow links, neither this name nor any below.
                std::fs::remove_dir_all(place)
            }
            removed => removed.map_err(io::Error::from),
        };
        match removed {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
            _ => Ok(()),
        }
    }

    fn note(&mut self, path: PathBuf) {
        if let Some(made) = &mut self.made {
            made.insert(path);
        }
    }

    fn count(&mut self, path: &Path) -> io::Result<()> {
        if self.cancel.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let entries = self.left.entries.checked_sub(1);
        let names = self.left.names.checked_sub(path.as_os_str().len());
        let (Some(entries), Some(names)) = (entries, names) else {
            return Err(refused("the image has more files than a volume may".to_owned()));
        };
        (self.left.entries, self.left.names) = (entries, names);
        Ok(())
    }

    fn look(&mut self) -> io::Result<()> {
        let looks = self.left.looks.checked_sub(1);
        self.left.looks = looks.ok_or_else(|| {
            refused("the image takes more files away than a volume may".to_owned())
        })?;
        Ok(())
    }

    fn spend(&mut self, bytes: u64) -> io::Result<()> {
        let left = self.left.bytes.checked_sub(bytes);
        self.left.bytes =
            left.ok_or_else(|| refused("the image has more bytes than a volume may".to_owned()))?;
        self.room.take(bytes)?;
        if self.cancel.is_cancelled() { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
    }
}

fn is_folder(parent: &OwnedFd, name: &OsStr) -> bool {
    statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// A path of an image in its plain form, from its root; `None` is the root itself.
fn plain(path: &Path) -> io::Result<Option<PathBuf>> {
    let wrong = || {
        let shown: String = path.to_string_lossy().chars().take(200).collect();
        refused(format!("the image has a path that leads out of it, or is too long: {shown}"))
    };
    if path.as_os_str().len() > PATH_BYTES_MAX {
        return Err(wrong());
    }
    let mut plain = PathBuf::new();
    let mut depth = 0;
    for component in path.components() {
        match component {
            // `/etc/x` is the image's own `etc/x`.
            Component::CurDir | Component::RootDir => {}
            Component::Normal(name) if name.len() > NAME_BYTES_MAX => return Err(wrong()),
            Component::Normal(name) => {
                depth += 1;
                plain.push(name);
            }
            Component::ParentDir | Component::Prefix(_) => return Err(wrong()),
        }
    }
    if depth > DEPTH_MAX {
        return Err(wrong());
    }
    if path.as_os_str().as_encoded_bytes().contains(&0) {
        return Err(damaged("a name with a zero"));
    }
    Ok((depth > 0).then_some(plain))
}

#[cfg(test)]
#[path = "tree_test.rs"]
mod tree_test;
