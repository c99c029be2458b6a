//! Compiled components: loaded once per file, linked once.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre, Linker};

use crate::guest::Guest;
use crate::linker;
use crate::types::{StartError, World};

/// Components kept although no container runs them, for the next start of a pod that restarts.
const UNUSED_MAX: usize = 4;

/// What a component offers, with the version that decides how it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// `wasi:cli/run@0.2`.
    CommandP2,
    /// `wasi:cli/run@0.3`.
    CommandP3,
    /// `wasi:http/incoming-handler@0.2`.
    HttpP2,
    /// `wasi:http/handler@0.3`.
    HttpP3,
    /// None of them.
    Reactor,
}

impl Entry {
    /// Reads the names of a component's exports. HTTP wins: such a component may offer `run`
    /// besides.
    pub(crate) fn of<'a>(exports: impl Iterator<Item = &'a str>) -> Self {
        exports.fold(Self::Reactor, |entry, name| match (entry, name) {
            (_, name) if name.starts_with("wasi:http/handler@0.3") => Self::HttpP3,
            (Self::HttpP3, _) => entry,
            (_, name) if name.starts_with("wasi:http/incoming-handler@0.2") => Self::HttpP2,
            (Self::HttpP2, _) => entry,
            (_, name) if name.starts_with("wasi:cli/run@0.3") => Self::CommandP3,
            (Self::CommandP3, _) => entry,
            (_, name) if name.starts_with("wasi:cli/run@0.2") => Self::CommandP2,
            _ => entry,
        })
    }

    pub(crate) fn world(self) -> World {
        match self {
            Self::CommandP2 | Self::CommandP3 => World::Command,
            Self::HttpP2 => World::HttpP2,
            Self::HttpP3 => World::HttpP3,
            Self::Reactor => World::Reactor,
        }
    }
}

/// A component ready to be instantiated.
pub(crate) struct Loaded {
    pub(crate) pre: InstancePre<Guest>,
    pub(crate) entry: Entry,
}

/// All loaded components.
pub(crate) struct Code {
    engine: Engine,
    linker: Linker<Guest>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    loaded: BTreeMap<Key, Weak<Loaded>>,
    recent: VecDeque<Arc<Loaded>>,
}

/// A file and its state, so that a replaced file is loaded anew.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    path: PathBuf,
    modified: Option<std::time::SystemTime>,
    bytes: u64,
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Code").finish_non_exhaustive()
    }
}

impl Code {
    pub(crate) fn new(engine: &Engine) -> wasmtime::Result<Self> {
        let linker = linker::linker(engine)?;
        Ok(Self { engine: engine.clone(), linker, cache: Mutex::default() })
    }

    /// Components in use or kept.
    pub(crate) fn count(&self) -> usize {
        self.cache.lock().loaded.values().filter(|loaded| loaded.strong_count() > 0).count()
    }

    /// Loads and links a compiled component. Blocks on the file.
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    pub(crate) fn load(&self, path: &Path) -> Result<Arc<Loaded>, StartError> {
        let host = |error: std::io::Error| {
            StartError::Host(format!("cannot read compiled component: {error}"))
        };
        let meta = std::fs::metadata(path).map_err(host)?;
        let key = Key { path: path.to_owned(), modified: meta.modified().ok(), bytes: meta.len() };
        if let Some(loaded) = self.cache.lock().get(&key) {
            return Ok(loaded);
        }
        // Two that load the same file at the same time load it twice; the later one is kept.
        let component = deserialize(&self.engine, path)
            .map_err(|error| StartError::Unsupported { reason: format!("{error:#}") })?;
        let pre = linker::link(&self.linker, &component)?;
        let ty = component.component_type();
        let entry = Entry::of(ty.exports(&self.engine).map(|(name, _)| name));
        let loaded = Arc::new(Loaded { pre, entry });
        self.cache.lock().put(key, &loaded);
        Ok(loaded)
    }
}

impl Cache {
    fn get(&mut self, key: &Key) -> Option<Arc<Loaded>> {
        let loaded = self.loaded.get(key)?.upgrade()?;
        self.keep(&loaded);
        Some(loaded)
    }

    fn put(&mut self, key: Key, loaded: &Arc<Loaded>) {
        self.keep(loaded);
        self.loaded.retain(|_, loaded| loaded.strong_count() > 0);
        self.loaded.insert(key, Arc::downgrade(loaded));
    }

    fn keep(&mut self, loaded: &Arc<Loaded>) {
        self.recent.retain(|other| !Arc::ptr_eq(other, loaded));
        self.recent.push_back(Arc::clone(loaded));
        while self.recent.len() > UNUSED_MAX {
            self.recent.pop_front();
        }
    }
}

/// Maps compiled code.
#[expect(unsafe_code, reason = "compiled code is trusted: see the comment")]
fn deserialize(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: the file was written by `compile_file` of this program or fetched with a
    // server's signature, into a folder that only this program writes (a file is replaced by
    // rename, never changed in place, so the mapping stays what it was). Wasmtime checks version
    // and settings, and reports a mismatch as an error.
    unsafe { Component::deserialize_file(engine, path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_world_is_read_from_the_exports() {
        let entry = |names: &[&str]| Entry::of(names.iter().copied());
        assert_eq!(entry(&["wasi:cli/run@0.2.6"]), Entry::CommandP2);
        assert_eq!(entry(&["wasi:cli/run@0.3.0"]), Entry::CommandP3);
        assert_eq!(
            entry(&["wasi:http/incoming-handler@0.2.0", "wasi:cli/run@0.2.0"]),
            Entry::HttpP2
        );
        assert_eq!(entry(&["wasi:http/handler@0.3.0", "run"]), Entry::HttpP3);
        assert_eq!(entry(&["a:b/c"]), Entry::Reactor);
    }
}
