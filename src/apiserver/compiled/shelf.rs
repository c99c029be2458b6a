//! The code on the disk of a server.
//!
//! ```text
//! <engine>/<component>-<code>.cwasm   the name carries the SHA-256 of the bytes
//! incoming/<n>.tmp                    what is being made, fetched or brought
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::api::compiled_code::{Statement, is_sha256};
use crate::apiserver::compiled::Key;

/// Most codes on the shelf.
const CODES_MAX: usize = 4096;
/// Ending of code.
const ENDING: &str = ".cwasm";
/// What is not complete and was not written to for so long, nobody goes on with.
const INCOMING_AGE_MAX: Duration = Duration::from_secs(3600);
/// Folder of what is not complete.
const INCOMING: &str = "incoming";

/// One code.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    code: String,
    bytes: u64,
    /// Larger is later.
    used: u64,
}

/// What is there, and when it was used last. Which was used when is in memory only: a start takes
/// the order in which files were made.
#[derive(Debug)]
pub(super) struct Shelf {
    dir: PathBuf,
    bytes_max: u64,
    entries: BTreeMap<Key, Entry>,
    /// Counts uses.
    now: u64,
    /// Counts temporary files.
    temporaries: u64,
}

impl Shelf {
    /// Takes up what an earlier life left. A folder that cannot be read is an empty shelf.
    pub(super) fn open(dir: PathBuf, bytes_max: u64) -> Self {
        let _ = fs::remove_dir_all(dir.join(INCOMING));
        let mut shelf = Self { dir, bytes_max, entries: BTreeMap::new(), now: 0, temporaries: 0 };
        let mut found = shelf.find().unwrap_or_default();
        found.sort_by_key(|(made, ..)| *made);
        for (_, key, code, bytes) in found {
            shelf.now += 1;
            let entry = Entry { code, bytes, used: shelf.now };
            if let Some(other) = shelf.entries.insert(key.clone(), entry) {
                let _ = fs::remove_file(shelf.path(&key, &other.code));
            }
        }
        shelf.shrink();
        shelf
    }

    fn find(&self) -> io::Result<Vec<(SystemTime, Key, String, u64)>> {
        let mut found = Vec::new();
        for folder in fs::read_dir(&self.dir)? {
            let folder = folder?;
            let Ok(engine) = folder.file_name().into_string() else { continue };
            if !is_sha256(&engine) {
                continue;
            }
            for file in fs::read_dir(folder.path())? {
                let file = file?;
                let (name, meta) = (file.file_name(), file.metadata()?);
                let names = name.to_str().and_then(|name| name.strip_suffix(ENDING));
                let Some((component, code)) = names.and_then(|names| names.split_once('-')) else {
                    continue;
                };
                if is_sha256(component) && is_sha256(code) {
                    let key = Key { engine: engine.clone(), component: component.to_owned() };
                    found.push((meta.modified()?, key, code.to_owned(), meta.len()));
                }
            }
        }
        Ok(found)
    }

    /// The code, if it is there, and its file. Counts as a use.
    pub(super) fn take(&mut self, key: &Key) -> Option<(Statement, PathBuf)> {
        self.now += 1;
        let now = self.now;
        let entry = self.entries.get_mut(key)?;
        entry.used = now;
        let Entry { code, bytes, .. } = entry.clone();
        let path = self.path(key, &code);
        let Key { engine, component } = key.clone();
        Some((Statement { engine, component, code, bytes }, path))
    }

    /// Forgets code whose file is gone or broken.
    pub(super) fn forget(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            let _ = fs::remove_file(self.path(key, &entry.code));
        }
    }

    /// A name for a file that is not complete; its folder is there.
    pub(super) fn temporary(&mut self) -> io::Result<PathBuf> {
        self.temporaries += 1;
        let folder = self.dir.join(INCOMING);
        fs::create_dir_all(&folder)?;
        for file in fs::read_dir(&folder)?.flatten() {
            let modified = file.metadata().and_then(|meta| meta.modified());
            if modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > INCOMING_AGE_MAX)) {
                let _ = fs::remove_file(file.path());
            }
        }
        Ok(folder.join(format!("{}.tmp", self.temporaries)))
    }

    /// Takes over a complete and synced file, and makes room for it.
    pub(super) fn put(&mut self, file: &Path, statement: &Statement) -> io::Result<()> {
        if statement.bytes > self.bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        let (engine, component) = (statement.engine.clone(), statement.component.clone());
        let key = Key { engine, component };
        let path = self.path(&key, &statement.code);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
            fs::rename(file, &path)?;
            File::open(folder)?.sync_all()?;
        }
        self.now += 1;
        let (code, bytes) = (statement.code.clone(), statement.bytes);
        let old = self.entries.insert(key.clone(), Entry { code, bytes, used: self.now });
        if let Some(old) = old.filter(|old| old.code != statement.code) {
            let _ = fs::remove_file(self.path(&key, &old.code));
        }
        self.shrink();
        Ok(())
    }

    /// Deletes the longest unused until the rest fits. A file that is being sent stays readable.
    fn shrink(&mut self) {
        loop {
            let bytes: u64 = self.entries.values().map(|entry| entry.bytes).sum();
            if bytes <= self.bytes_max && self.entries.len() <= CODES_MAX {
                return;
            }
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(key) = oldest.map(|(key, _)| key.clone()) else { return };
            self.forget(&key);
        }
    }

    fn path(&self, key: &Key, code: &str) -> PathBuf {
        self.dir.join(&key.engine).join(format!("{}-{code}{ENDING}", key.component))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statement(component: char, bytes: u64) -> Statement {
        let name = |c: char| c.to_string().repeat(64);
        Statement { engine: name('e'), component: name(component), code: name('c'), bytes }
    }

    fn key(component: char) -> Key {
        let Statement { engine, component, .. } = statement(component, 0);
        Key { engine, component }
    }

    fn put(shelf: &mut Shelf, component: char, bytes: u64) -> io::Result<()> {
        let file = shelf.temporary()?;
        fs::write(&file, vec![0; usize::try_from(bytes).unwrap()])?;
        shelf.put(&file, &statement(component, bytes))
    }

    #[test]
    fn the_longest_unused_goes_when_the_shelf_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::open(folder.path().to_owned(), 100);
        for component in ['a', 'b'] {
            put(&mut shelf, component, 40).unwrap();
        }
        assert_eq!(shelf.take(&key('a')).unwrap().0, statement('a', 40));
        put(&mut shelf, 'd', 40).unwrap();
        assert!(shelf.take(&key('b')).is_none());
        let (_, path) = shelf.take(&key('a')).unwrap();
        assert_eq!(fs::metadata(path).unwrap().len(), 40);
        assert!(put(&mut shelf, 'f', 101).is_err());
        let files = fs::read_dir(folder.path().join("e".repeat(64))).unwrap().count();
        assert_eq!(files, 2);
    }

    #[test]
    fn a_restart_finds_what_is_whole_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::open(folder.path().to_owned(), 100);
        put(&mut shelf, 'a', 10).unwrap();
        let torn = shelf.temporary().unwrap();
        fs::write(&torn, "half").unwrap();
        fs::write(folder.path().join("e".repeat(64)).join("stray.cwasm"), "x").unwrap();
        let mut shelf = Shelf::open(folder.path().to_owned(), 100);
        assert_eq!(shelf.take(&key('a')).unwrap().0, statement('a', 10));
        assert_eq!(shelf.entries.len(), 1);
        assert!(!torn.exists());
        shelf.forget(&key('a'));
        assert!(Shelf::open(folder.path().to_owned(), 100).take(&key('a')).is_none());
        // A smaller shelf than before keeps the younger.
        put(&mut shelf, 'a', 10).unwrap();
        let mut smaller = Shelf::open(folder.path().to_owned(), 5);
        assert!(smaller.take(&key('a')).is_none());
    }
}
