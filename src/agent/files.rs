//! Files and folders that only this user can enter, written whole.

use std::ffi::OsString;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest file of our own that is read back, in bytes.
const OWN_FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Makes a folder, and those above it, that only this user can enter.
pub(crate) fn make_private(dir: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// As [`make_private`], but the folder above must be there.
pub(crate) fn make_one(dir: &Path) -> io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(err) if err.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Removes a folder with all that is in it, if it is there. Follows no link.
pub(crate) fn remove_folder(dir: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(dir) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

/// A name beside `path` that no other write of this process has: two may write one file at a time.
pub(crate) fn temporary_name(path: &Path) -> OsString {
    static WRITES: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", WRITES.fetch_add(1, Ordering::Relaxed)));
    name
}

/// Replaces a file whole: after a power cut it is the old one or this one. Makes its folder, but
/// none above that.
pub(crate) fn write_atomic(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, content, true)
}

/// As [`write_atomic`], for what is made anew if a power cut takes it.
pub(crate) fn write_scratch(path: &Path, content: &[u8]) -> io::Result<()> {
    replace(path, content, false)
}

/// As [`write_atomic`]; what a power cut leaves is left to chance unless it is synced.
pub(super) fn replace(path: &Path, content: &[u8], is_synced: bool) -> io::Result<()> {
    make_one(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    overwrite(path, content, is_synced)
}

/// As [`replace`], in a folder that must be there.
pub(super) fn overwrite(path: &Path, content: &[u8], is_synced: bool) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let temporary = dir.join(temporary_name(path));
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)?;
    file.write_all(content)?;
    if is_synced {
        file.sync_all()?;
    }
    std::fs::rename(&temporary, path)?;
    if is_synced { std::fs::File::open(dir)?.sync_all() } else { Ok(()) }
}

/// As [`write_atomic`], for a value.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    write_atomic(path, &serde_json::to_vec(value)?)
}

/// As [`write_json`], for those who must not wait for the disk on a thread that others need.
///
/// # Cancel safety
///
/// The file is written all the same.
pub(crate) async fn write_json_aside(path: PathBuf, value: &impl Serialize) -> io::Result<()> {
    let content = serde_json::to_vec(value)?;
    aside(move || write_atomic(&path, &content)).await
}

/// Does what blocks on the disk on a thread for such.
pub(super) async fn aside(
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<()> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|cause| Err(io::Error::other(cause)))
}

/// Reads what [`write_json`] wrote; `None` if it is not there or not whole.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&read_own(path)?).ok()
}

/// Reads a file of our own; `None` if it is not there, or too long to be one.
pub(crate) fn read_own(path: &Path) -> Option<Vec<u8>> {
    let length = std::fs::metadata(path).ok()?.len();
    if length > OWN_FILE_BYTES_MAX {
        return None;
    }
    std::fs::read(path).ok()
}
