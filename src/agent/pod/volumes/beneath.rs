//! Opening and making paths below a folder, one name at a time and without following a link.
//!
//! A guest may put links into the volumes that it writes to. Whoever asks for a path in such a
//! volume by its text asks the guest; here every step is taken from a folder that is already open.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, fstat, mkdirat, openat};
use rustix::io::Errno;

/// Handle without access: good for walking on, and for opening again through `/proc/self/fd`.
const STEP: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Mode of folders made on the way.
const FOLDER_MODE: u32 = 0o700;

/// What happens where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Missing {
    /// The walk fails.
    Refuse,
    /// A folder is made.
    MakeFolder,
}

/// Something in a volume, held open: it stays this very thing, whatever is renamed meanwhile.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) handle: OwnedFd,
    pub(super) is_folder: bool,
}

impl Held {
    /// A path that leads to the held thing for as long as it is held.
    pub(super) fn path(&self) -> PathBuf {
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
pub(super) fn open(root: &Path, relative: &Path, missing: Missing) -> io::Result<Held> {
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
}
