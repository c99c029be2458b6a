//! A folder whose whole content changes at once: the layout of the kubelet's AtomicWriter.
//!
//! ```text
//! <volume>/..<number>/app/config.yaml   the files
//! <volume>/..data -> ..<number>         the link that is swapped
//! <volume>/app -> ..data/app            what the guest sees
//! ```
//!
//! # Invariants
//!
//! - A reader that opened `..data` sees one version, never a mixture.
//! - Nothing is synced to disk: after a power cut the content is compared and written again.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::agent::dirs::make_one;

/// The link that is swapped.
const DATA: &str = "..data";
/// Its next value, before the swap.
const DATA_NEXT: &str = "..data_tmp";

/// One file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) content: Vec<u8>,
    pub(super) mode: u32,
}

/// Files by their path within the volume. Paths are checked before they come here.
pub(super) type Payload = BTreeMap<PathBuf, File>;

/// Makes `folder`, which must be there, hold exactly `payload`. Returns whether anything was
/// written.
pub(super) fn write(folder: &Path, payload: &Payload) -> io::Result<bool> {
    let present = data(folder);
    if present.as_ref().is_some_and(|present| is_same(present, payload)) {
        return Ok(false);
    }
    let name = fresh_name(folder);
    let next = folder.join(&name);
    make_one(&next)?;
    for (path, file) in payload {
        put(&next, path, file)?;
    }
    let staged = folder.join(DATA_NEXT);
    remove_if_there(&staged)?;
    symlink(&name, &staged)?;
    // New names need `..data` to point somewhere; names that went away must not dangle for long.
    let wanted: BTreeSet<OsString> = payload.keys().filter_map(|path| first(path)).collect();
    fs::rename(&staged, folder.join(DATA))?;
    show(folder, &wanted)?;
    remove_others(folder, &wanted, &name)?;
    Ok(true)
}

/// The folder that holds the present version, past the link; for mounts that never change.
pub(super) fn data(folder: &Path) -> Option<PathBuf> {
    let target = fs::read_link(folder.join(DATA)).ok()?;
    // Only the agent writes here; a link that leads elsewhere is none of ours.
    (target.components().count() == 1).then(|| folder.join(target)).filter(|path| path.is_dir())
}

fn first(path: &Path) -> Option<OsString> {
    path.components().next().map(|name| name.as_os_str().to_owned())
}

/// A name that no version has had in this process, nor has now on disk.
fn fresh_name(folder: &Path) -> String {
    static VERSIONS: AtomicU64 = AtomicU64::new(0);
    loop {
        let name = format!("..v{}", VERSIONS.fetch_add(1, Ordering::Relaxed));
        if fs::symlink_metadata(folder.join(&name)).is_err() {
            return name;
        }
    }
}

fn put(version: &Path, path: &Path, file: &File) -> io::Result<()> {
    let mut folder = version.to_owned();
    for name in path.parent().into_iter().flat_map(Path::components) {
        folder.push(name);
        make_one(&folder)?;
    }
    let path = version.join(path);
    let mut open = fs::OpenOptions::new();
    let mut made = open.write(true).create_new(true).mode(0o600).open(path)?;
    made.write_all(&file.content)?;
    // The agent and its guests must be able to read it, whatever mode the pod asks for.
    made.set_permissions(fs::Permissions::from_mode(file.mode | 0o400))
}

fn is_same(present: &Path, payload: &Payload) -> bool {
    let mut count = 0;
    if count_files(present, &mut count).is_err() || count != payload.len() {
        return false;
    }
    payload.iter().all(|(path, file)| {
        let path = present.join(path);
        let mode = |meta: fs::Metadata| meta.permissions().mode() & 0o777;
        fs::symlink_metadata(&path).is_ok_and(|meta| {
            meta.is_file()
                && meta.len() == file.content.len() as u64
                && mode(meta) == file.mode | 0o400
        }) && fs::read(&path).is_ok_and(|had| had == file.content)
    })
}

fn count_files(folder: &Path, count: &mut usize) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            count_files(&entry.path(), count)?;
        } else {
            *count += 1;
        }
    }
    Ok(())
}

/// Makes the links that the guest sees.
fn show(folder: &Path, wanted: &BTreeSet<OsString>) -> io::Result<()> {
    for name in wanted {
        let link = folder.join(name);
        let target = Path::new(DATA).join(name);
        if fs::read_link(&link).is_ok_and(|had| had == target) {
            continue;
        }
        remove_if_there(&link)?;
        symlink(target, link)?;
    }
    Ok(())
}

/// Removes names and versions of an earlier content.
fn remove_others(folder: &Path, wanted: &BTreeSet<OsString>, version: &str) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != DATA && name != version && !wanted.contains(&name) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(err) => Err(err),
    };
    match removed {
        Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| File { content: text.into(), mode: 0o644 };
        files.iter().map(|(path, text)| (PathBuf::from(path), file(text))).collect()
    }

    #[test]
    fn content_changes_whole_and_what_went_away_goes() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("v");
        fs::create_dir(&folder).unwrap();
        assert!(write(&folder, &payload(&[("a", "1"), ("d/x", "2")])).unwrap());
        assert_eq!(fs::read_to_string(folder.join("d/x")).unwrap(), "2");
        assert_eq!(fs::read_link(folder.join("a")).unwrap(), Path::new("..data/a"));
        let mode = fs::metadata(folder.join("a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
        let before = data(&folder).unwrap();
        assert!(!write(&folder, &payload(&[("a", "1"), ("d/x", "2")])).unwrap(), "same content");
        assert_eq!(data(&folder).unwrap(), before);
        assert!(write(&folder, &payload(&[("a", "3")])).unwrap());
        assert_eq!(fs::read_to_string(folder.join("a")).unwrap(), "3");
        assert!(fs::symlink_metadata(folder.join("d")).is_err());
        assert!(!before.exists());
    }

    #[test]
    fn a_reader_that_follows_the_link_sees_one_version() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("v");
        fs::create_dir(&folder).unwrap();
        write(&folder, &payload(&[("a", "0"), ("b", "0")])).unwrap();
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for round in 1..200 {
                    let text = round.to_string();
                    write(&folder, &payload(&[("a", &text), ("b", &text)])).unwrap();
                }
            });
            while !writer.is_finished() {
                let Some(version) = data(&folder) else { continue };
                let read = |name: &str| fs::read_to_string(version.join(name)).ok();
                // A version that is gone by now reads as nothing, never as another one.
                if let (Some(a), Some(b)) = (read("a"), read("b")) {
                    assert_eq!(a, b);
                }
            }
        });
    }

    #[test]
    fn a_torn_or_tampered_file_is_written_again() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("v");
        fs::create_dir(&folder).unwrap();
        let wanted = payload(&[("a", "whole")]);
        write(&folder, &wanted).unwrap();
        fs::write(folder.join("a"), "").unwrap();
        assert!(write(&folder, &wanted).unwrap());
        assert_eq!(fs::read_to_string(folder.join("a")).unwrap(), "whole");
    }

    #[test]
    fn a_plain_file_of_an_older_layout_gives_way() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("v");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("a"), "old").unwrap();
        fs::write(folder.join("gone"), "old").unwrap();
        write(&folder, &payload(&[("a", "new")])).unwrap();
        assert_eq!(fs::read_to_string(folder.join("a")).unwrap(), "new");
        assert!(!folder.join("gone").exists());
    }
}
