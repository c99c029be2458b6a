//! Opening and making paths below a folder, one name at a time and without following a link, or
//! only links that stay below it.
//!
//! A guest may put links into the volumes that it writes to, and an image may bring some. Whoever
//! asks for a path in such a volume by its text asks the guest; here every step is taken from a
//! folder that is already open.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, mknodat, openat, readlinkat};
use rustix::io::Errno;

/// Handle without access: good for walking on, and for opening again through `/proc/self/fd`.
const STEP: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Links followed in one path, as in Linux.
const LINKS_MAX: usize = 40;
/// Names in a path with the links of it followed.
const STEPS_MAX: usize = 1024;
/// Mode of folders made on the way.
const FOLDER_MODE: u32 = 0o700;
/// Mode of nodes of devices.
const NODE_MODE: u32 = 0o600;

/// What happens where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The walk fails.
    Refuse,
    /// A folder is made.
    MakeFolder,
}

/// Something in a volume, held open: it stays this very thing, whatever is renamed meanwhile.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) handle: OwnedFd,
    pub(crate) is_folder: bool,
}

impl Held {
    /// A path that leads to the held thing for as long as it is held.
    pub(crate) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.handle.as_raw_fd()))
    }
}

/// Opens `relative` below `root`. `root` itself may be reached through links: it is the agent's
/// or the administrator's. No link below it is followed.
///
/// # Errors
///
/// `InvalidInput` for an absolute path or one with `..`, `FilesystemLoop` for a link on the way,
/// and what the system says.
pub(crate) fn open(root: &Path, relative: &Path, missing: Missing) -> io::Result<Held> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut at = Held { handle: openat(CWD, root, flags, Mode::empty())?, is_folder: true };
    for component in relative.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => at = step(&at.handle, name, missing)?,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(io::ErrorKind::InvalidInput.into());
            }
        }
    }
    Ok(at)
}

/// As [`open`] of something that is there, but follows links that are relative and lead to no place
/// above `root`. Each name is looked up in a folder that is held: what a guest renames or links
/// meanwhile may change what is found, and never leads out.
///
/// # Errors
///
/// `InvalidInput` for a path that leaves `root`, by itself or by a link; what the system says.
pub(crate) fn open_following(root: &Path, relative: &Path) -> io::Result<Held> {
    let out = || io::Error::from(io::ErrorKind::InvalidInput);
    let mut left: Vec<OsString> = names_reversed(relative).ok_or_else(out)?;
    // The folders from the root to where the walk is; `..` goes back by handle, not by name.
    let mut way = vec![open(root, Path::new(""), Missing::Refuse)?];
    let mut links = 0;
    for _ in 0..STEPS_MAX {
        let Some(at) = way.last() else { return Err(out()) };
        let Some(name) = left.pop() else {
            return way.pop().ok_or_else(out);
        };
        if name == ".." {
            way.pop();
            continue;
        }
        let handle = openat(&at.handle, &name, STEP, Mode::empty())?;
        if FileType::from_raw_mode(fstat(&handle)?.st_mode) == FileType::Symlink {
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::LOOP.into());
            }
            let target = readlinkat(&handle, "", Vec::new())?;
            let target = Path::new(OsStr::from_bytes(target.to_bytes()));
            left.extend(names_reversed(target).ok_or_else(out)?);
        } else {
            way.push(held(handle)?);
        }
    }
    Err(Errno::NAMETOOLONG.into())
}

/// Opens what the administrator calls a device: a folder, a file or a node, through links.
///
/// # Errors
///
/// What the system says.
pub(crate) fn open_device(path: &Path) -> io::Result<Held> {
    let handle = openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let is_folder = FileType::from_raw_mode(fstat(&handle)?.st_mode) == FileType::Directory;
    Ok(Held { handle, is_folder })
}

/// Makes a node of the same device at `target`; `None` if what is held is none.
pub(crate) fn make_device_like(held: &Held, target: &Path) -> Option<io::Result<()>> {
    let found = fstat(&held.handle).ok()?;
    let kind = FileType::from_raw_mode(found.st_mode);
    if !matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        return None;
    }
    let mode = Mode::from_raw_mode(NODE_MODE);
    Some(mknodat(CWD, target, kind, mode, found.st_rdev).map_err(io::Error::from))
}

/// The names of a relative path, the last one first; `None` for an absolute path.
fn names_reversed(path: &Path) -> Option<Vec<OsString>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::Normal(_) | Component::ParentDir => {
                names.push(component.as_os_str().to_owned());
            }
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    names.reverse();
    Some(names)
}

fn step(at: &OwnedFd, name: &OsStr, missing: Missing) -> io::Result<Held> {
    let look = || openat(at, name, STEP, Mode::empty());
    let handle = match look() {
        Err(Errno::NOENT) if missing == Missing::MakeFolder => {
            match mkdirat(at, name, Mode::from_raw_mode(FOLDER_MODE)) {
                // Somebody else was faster; what they made is looked at like any other thing.
                Ok(()) | Err(Errno::EXIST) => look()?,
                Err(err) => return Err(err.into()),
            }
        }
        other => other?,
    };
    held(handle)
}

fn held(handle: OwnedFd) -> io::Result<Held> {
    match FileType::from_raw_mode(fstat(&handle)?.st_mode) {
        FileType::Directory => Ok(Held { handle, is_folder: true }),
        FileType::RegularFile => Ok(Held { handle, is_folder: false }),
        FileType::Symlink => Err(Errno::LOOP.into()),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "only folders and regular files can be mounted",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_link_that_a_guest_made_lets_nothing_be_made_outside() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), root.path().join("out")).unwrap();
        let refused = open(root.path(), Path::new("out/made"), Missing::MakeFolder);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        assert!(!outside.path().join("made").exists());
        // Nor is the link itself taken for a folder.
        assert!(open(root.path(), Path::new("out"), Missing::MakeFolder).is_err());
    }

    #[test]
    fn what_is_held_stays_itself_when_a_guest_puts_a_link_in_its_place() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let held = open(root.path(), Path::new("a/b"), Missing::MakeFolder).unwrap();
        std::fs::rename(root.path().join("a/b"), root.path().join("moved")).unwrap();
        symlink(outside.path(), root.path().join("a/b")).unwrap();
        std::fs::write(held.path().join("x"), "x").unwrap();
        assert!(root.path().join("moved/x").exists());
        assert!(!outside.path().join("x").exists());
    }

    #[test]
    fn paths_that_lead_up_are_refused_and_files_are_told_from_folders() {
        let root = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc", "a/../../x"] {
            assert!(open(root.path(), Path::new(path), Missing::MakeFolder).is_err(), "{path}");
        }
        assert!(open(root.path(), Path::new("none"), Missing::Refuse).is_err());
        std::fs::write(root.path().join("f"), "f").unwrap();
        assert!(!open(root.path(), Path::new("./f"), Missing::Refuse).unwrap().is_folder);
        assert!(open(root.path(), Path::new("f/x"), Missing::MakeFolder).is_err());
    }

    #[test]
    fn links_are_followed_as_long_as_they_stay_below_the_root() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(outside.path().join("secret"), "s").unwrap();
        let at = |path: &str| root.path().join(path);
        std::fs::create_dir_all(at("a/b")).unwrap();
        std::fs::write(at("a/tool"), "t").unwrap();
        symlink("../tool", at("a/b/one")).unwrap();
        symlink("a/b/one", at("two")).unwrap();
        symlink("../../a/tool", at("a/up")).unwrap();
        symlink(outside.path().join("secret"), at("absolute")).unwrap();
        symlink("loop", at("loop")).unwrap();
        for path in ["a/tool", "a/b/one", "two", "a/b/../tool"] {
            let held = open_following(root.path(), Path::new(path)).unwrap();
            assert_eq!(std::fs::read_to_string(held.path()).unwrap(), "t", "{path}");
        }
        for path in ["a/up", "absolute", "loop", "../x", "/etc/hostname", "a/tool/x", "none"] {
            assert!(open_following(root.path(), Path::new(path)).is_err(), "{path}");
        }
    }
}
