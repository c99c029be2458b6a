//! A disk that loses power: what was not synced is dropped, kept, torn or reordered.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::log::record::SECTOR_BYTES;
use crate::log::{Disk, DiskFile};

enum NameOp {
    Create(String, u64),
    Rename(String, String),
    Remove(String),
}

#[derive(Default)]
struct Content {
    live: Vec<u8>,
    durable: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

struct State {
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    unsynced_names: Vec<NameOp>,
    files: BTreeMap<u64, Content>,
    next_file: u64,
    /// Changes until the power goes.
    budget: u64,
    is_off: bool,
    rng: StdRng,
}

fn off() -> io::Error {
    io::Error::other("power is off")
}

impl State {
    fn spend(&mut self) -> io::Result<()> {
        if self.is_off || self.budget == 0 {
            self.is_off = true;
            return Err(off());
        }
        self.budget -= 1;
        Ok(())
    }
}

/// How much of the unsynced writes a power cut leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    Everything,
    SomeWrites,
    SomeSectors,
    Nothing,
}

#[derive(Clone)]
pub(crate) struct SimDisk(Arc<Mutex<State>>);

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            files: BTreeMap::new(),
            next_file: 1,
            budget: u64::MAX,
            is_off: false,
            rng: StdRng::seed_from_u64(seed),
        })))
    }

    /// Lets so many changes through, then the power goes.
    pub(crate) fn set_budget(&self, changes: u64) {
        self.0.lock().budget = changes;
    }

    /// What is there when the power is back.
    pub(crate) fn power_cycle(&self) -> Self {
        let mut state = self.0.lock();
        let state = &mut *state;
        let loss = [Loss::Everything, Loss::SomeWrites, Loss::SomeSectors, Loss::Nothing]
            [state.rng.random_range(0..4)];
        // A journal keeps the order of names: a prefix of the changes survives.
        let kept = match loss {
            Loss::Everything => 0,
            Loss::Nothing => state.unsynced_names.len(),
            _ => state.rng.random_range(0..=state.unsynced_names.len()),
        };
        let mut names = state.durable_names.clone();
        for op in &state.unsynced_names[..kept] {
            apply_name(&mut names, op);
        }
        let mut files = BTreeMap::new();
        for (id, content) in &state.files {
            let mut bytes = content.durable.clone();
            for (offset, write) in &content.unsynced {
                if loss == Loss::Everything
                    || (loss == Loss::SomeWrites && state.rng.random_bool(0.5))
                {
                    continue;
                }
                for (number, sector) in write.chunks(SECTOR_BYTES).enumerate() {
                    if loss == Loss::SomeSectors && state.rng.random_bool(0.5) {
                        continue;
                    }
                    put(&mut bytes, offset + number * SECTOR_BYTES, sector);
                }
            }
            files.insert(*id, Content { live: bytes.clone(), durable: bytes, unsynced: vec![] });
        }
        Self(Arc::new(Mutex::new(State {
            names: names.clone(),
            durable_names: names,
            unsynced_names: Vec::new(),
            files,
            next_file: state.next_file,
            budget: u64::MAX,
            is_off: false,
            rng: StdRng::seed_from_u64(state.rng.random()),
        })))
    }

    /// Flips a bit of a file's durable content.
    pub(crate) fn rot(&self, name: &str, offset: usize) {
        let mut state = self.0.lock();
        let id = state.names[name];
        let content = state.files.get_mut(&id).unwrap();
        content.live[offset] ^= 1;
        content.durable[offset] ^= 1;
    }

    fn file(&self, id: u64) -> Arc<dyn DiskFile> {
        Arc::new(SimFile { disk: self.clone(), id })
    }
}

fn apply_name(names: &mut BTreeMap<String, u64>, op: &NameOp) {
    match op {
        NameOp::Create(name, id) => {
            names.insert(name.clone(), *id);
        }
        NameOp::Rename(from, to) => {
            if let Some(id) = names.remove(from) {
                names.insert(to.clone(), id);
            }
        }
        NameOp::Remove(name) => {
            names.remove(name);
        }
    }
}

fn put(bytes: &mut Vec<u8>, offset: usize, part: &[u8]) {
    if bytes.len() < offset + part.len() {
        bytes.resize(offset + part.len(), 0);
    }
    bytes[offset..offset + part.len()].copy_from_slice(part);
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.lock().names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let id = {
            let mut state = self.0.lock();
            state.spend()?;
            let id = state.next_file;
            state.next_file += 1;
            state.files.insert(id, Content::default());
            state.names.insert(name.to_owned(), id);
            state.unsynced_names.push(NameOp::Create(name.to_owned(), id));
            id
        };
        Ok(self.file(id))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let id = self.0.lock().names.get(name).copied();
        id.map(|id| self.file(id)).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.spend()?;
        let op = NameOp::Rename(from.to_owned(), to.to_owned());
        apply_name(&mut state.names, &op);
        state.unsynced_names.push(op);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.0.lock();
        state.spend()?;
        let op = NameOp::Remove(name.to_owned());
        apply_name(&mut state.names, &op);
        state.unsynced_names.push(op);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        state.spend()?;
        state.durable_names = state.names.clone();
        state.unsynced_names.clear();
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("sim").join(name)
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: u64,
}

impl DiskFile for SimFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().files[&self.id].live.len() as u64)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.disk.0.lock();
        let live = &state.files[&self.id].live;
        let offset = usize::try_from(offset).unwrap();
        let part = live.get(offset..offset + out.len());
        out.copy_from_slice(part.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        let is_last = state.budget == 0 && !state.is_off;
        let spent = state.spend();
        // The write under way when the power goes may have reached the disk in part.
        if spent.is_ok() || is_last {
            let offset = usize::try_from(offset).unwrap();
            let content = state.files.get_mut(&self.id).unwrap();
            put(&mut content.live, offset, bytes);
            content.unsynced.push((offset, bytes.to_vec()));
        }
        spent
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        state.spend()?;
        let content = state.files.get_mut(&self.id).unwrap();
        content.durable = content.live.clone();
        content.unsynced.clear();
        Ok(())
    }
}
