//! A folder in memory for what must not wear a disk out: below a place that the system offers, one for
//! each data folder.
//!
//! ```text
//! <place>/edgeorc-<uid>/<hash>/           of the data folder with that hash
//! <place>/edgeorc-<uid>/<hash>/data-dir   which one that is
//! ```
//!
//! # Invariants
//!
//! - It lies on a file system in memory, belongs to this user, and nobody else can look into it.

use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::agent::dirs::{make_one, remove_folder};

/// Types of file systems in memory, as `statfs` names them.
const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;
/// Names the data folder that a folder here is of.
const DATA_DIR: &str = "data-dir";
/// Digits of the hash of a data folder's name.
const HASH_DIGITS: usize = 16;

/// The folder of `data_dir`, at the first of `places` that has memory. `None`: there is none, or the
/// data folder lies in memory itself.
///
/// Folders of data folders that are gone are removed. Blocks on the disk.
pub(crate) fn open(places: &[PathBuf], data_dir: &Path) -> Option<PathBuf> {
    let data_dir = data_dir.canonicalize().ok()?;
    if is_in_memory(&data_dir) {
        return None;
    }
    places.iter().find_map(|place| match open_at(place, &data_dir) {
        Ok(folder) => Some(folder),
        Err(err) => {
            tracing::debug!(%err, place = %place.display(), "no memory there for files");
            None
        }
    })
}

fn open_at(place: &Path, data_dir: &Path) -> io::Result<PathBuf> {
    if !is_in_memory(place) {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "it is not in memory"));
    }
    let own = place.join(format!("edgeorc-{}", rustix::process::geteuid().as_raw()));
    make_own(&own)?;
    remove_orphans(&own);
    let mut hash = hex::encode(Sha256::digest(data_dir.as_os_str().as_bytes()));
    hash.truncate(HASH_DIGITS);
    let folder = own.join(hash);
    make_own(&folder)?;
    std::fs::write(folder.join(DATA_DIR), data_dir.as_os_str().as_bytes())?;
    Ok(folder)
}

/// Makes a folder that is ours alone. One that was there may be somebody else's.
fn make_own(folder: &Path) -> io::Result<()> {
    make_one(folder)?;
    let meta = std::fs::symlink_metadata(folder)?;
    let is_ours = meta.uid() == rustix::process::geteuid().as_raw();
    if !meta.is_dir() || !is_ours || meta.mode() & 0o077 != 0 {
        let why = format!("{} is somebody else's, or open to others", folder.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(())
}

/// Nodes that were ended by force, and their data folders removed.
fn remove_orphans(own: &Path) {
    for entry in std::fs::read_dir(own).into_iter().flatten().flatten() {
        let Ok(of) = std::fs::read(entry.path().join(DATA_DIR)) else { continue };
        if !PathBuf::from(std::ffi::OsString::from_vec(of)).exists() {
            let _ = remove_folder(&entry.path());
        }
    }
}

fn is_in_memory(path: &Path) -> bool {
    #[expect(clippy::unnecessary_cast, reason = "its type differs between machines")]
    rustix::fs::statfs(path).is_ok_and(|found| {
        let kind = found.f_type as i64 & 0xffff_ffff;
        kind == TMPFS || kind == RAMFS
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_folder_in_memory_is_ours_alone_and_goes_with_its_data_folder() {
        // A system without it has no folder either.
        let Ok(memory) = tempfile::tempdir_in("/dev/shm") else { return };
        if !is_in_memory(memory.path()) {
            return;
        }
        let disk = Path::new(env!("CARGO_MANIFEST_DIR"));
        if is_in_memory(disk) {
            return;
        }
        let places = [PathBuf::from("/nowhere"), disk.to_owned(), memory.path().to_owned()];
        let found = open(&places, disk).unwrap();
        assert!(found.starts_with(memory.path()));
        assert_eq!(open(&places, disk), Some(found.clone()), "the same one again");
        assert_eq!(open(&places, memory.path()), None, "that is in memory already");

        let gone = found.with_file_name("0123");
        std::fs::create_dir(&gone).unwrap();
        std::fs::write(gone.join(DATA_DIR), "/nowhere").unwrap();
        assert!(open(&places, disk).is_some());
        assert!(!gone.exists());

        std::fs::set_permissions(&found, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(open(&places, disk), None, "others can look into it");
        std::fs::remove_dir_all(&found).unwrap();
        std::os::unix::fs::symlink("/tmp", &found).unwrap();
        assert_eq!(open(&places, disk), None, "it leads elsewhere");
    }
}
