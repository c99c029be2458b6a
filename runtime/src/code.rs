//! Compiled components: loaded once per file, linked once.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use wasmtime::Engine;
use wasmtime::component::{Component, InstancePre, Linker};

use crate::guest::Guest;
use crate::imports::{self, MissingImport};
use crate::linker;
use crate::serve::Reuse;
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

/// What can be called, in the order of preference: HTTP wins, for such a component may offer `run`
/// besides.
const ENTRIES: [(&str, &str, Entry); 4] = [
    ("wasi:http/handler", "0.3", Entry::HttpP3),
    ("wasi:http/incoming-handler", "0.2", Entry::HttpP2),
    ("wasi:cli/run", "0.3", Entry::CommandP3),
    ("wasi:cli/run", "0.2", Entry::CommandP2),
];

/// A component that nothing can call.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoEntry {
    #[error("the component exports nothing: there is nothing to run")]
    Nothing,
    #[error(
        "the component exports {0}, which is none of the versions that run here: \
         wasi:cli/run 0.2 and 0.3, wasi:http/incoming-handler 0.2, wasi:http/handler 0.3"
    )]
    OtherVersion(String),
}

impl Entry {
    /// Reads the names of a component's exports.
    ///
    /// # Errors
    ///
    /// [`NoEntry`] if there is nothing, or only drafts of what could be called: to keep such a
    /// component as a reactor would look as if it served.
    pub(crate) fn of<'a>(exports: impl Iterator<Item = &'a str>) -> Result<Self, NoEntry> {
        let exports: Vec<_> = exports.collect();
        for (interface, version, entry) in ENTRIES {
            if exports.iter().any(|name| is_version(name, interface, version)) {
                return Ok(entry);
            }
        }
        let is_near = |name: &&&str| {
            let interface = name.split_once('@').map_or(**name, |(interface, _)| interface);
            ENTRIES.iter().any(|(known, _, _)| *known == interface)
        };
        match exports.iter().find(is_near) {
            Some(name) => Err(NoEntry::OtherVersion(imports::shorten(name))),
            None if exports.is_empty() => Err(NoEntry::Nothing),
            None => Ok(Self::Reactor),
        }
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

/// Whether `name` is a release of `interface` that is compatible with `version`, `major.minor`.
fn is_version(name: &str, interface: &str, version: &str) -> bool {
    name.strip_prefix(interface)
        .and_then(|rest| rest.strip_prefix('@'))
        .and_then(|rest| rest.strip_prefix(version))
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|patch| patch.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A component ready to be instantiated.
pub(crate) struct Loaded {
    pub(crate) pre: InstancePre<Guest>,
    pub(crate) entry: Entry,
    /// Its imports that a pod must be granted.
    pub(crate) gated: Vec<MissingImport>,
    /// Whether instances of an HTTP component answer more than one request.
    pub(crate) reuse: Arc<Reuse>,
}

/// All loaded components.
pub(crate) struct Code {
    engine: Engine,
    linker: Linker<Guest>,
    cache: Mutex<Cache>,
    /// Held while a file is loaded: pods of one image that start together share what the first of
    /// them loads, instead of each keeping a copy for as long as it lives.
    loading: Mutex<()>,
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
        Ok(Self {
            engine: engine.clone(),
            linker,
            cache: Mutex::default(),
            loading: Mutex::new(()),
        })
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
        let _turn = self.loading.lock();
        if let Some(loaded) = self.cache.lock().get(&key) {
            return Ok(loaded);
        }
        let component = deserialize(&self.engine, path)
            .map_err(|error| StartError::Unsupported { reason: format!("{error:#}") })?;
        let pre = linker::link(&self.linker, &component)?;
        let ty = component.component_type();
        let entry = match Entry::of(ty.exports(&self.engine).map(|(name, _)| name)) {
            Ok(entry) => entry,
            // What is no reactor was refused before it was compiled. One that was a core module
            // has its `_initialize` and no exports.
            Err(NoEntry::Nothing) => Entry::Reactor,
            Err(error) => return Err(StartError::Unsupported { reason: error.to_string() }),
        };
        let gated = imports::gated(ty.imports(&self.engine).map(|(name, _)| name));
        let loaded = Arc::new(Loaded { pre, entry, gated, reuse: Arc::default() });
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
pub(crate) fn deserialize(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
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
    fn pods_that_start_together_share_the_code() {
        let plan = crate::engine::Plan::new(crate::machine::Machine::probe());
        let code = Code::new(&plan.compiler().unwrap()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.cwasm");
        let module =
            wat::parse_str(r#"(module (memory (export "memory") 1) (func (export "_start")))"#);
        std::fs::write(&path, crate::compile(&module.unwrap()).unwrap()).unwrap();
        let together = std::sync::Barrier::new(8);
        let load = || {
            together.wait();
            code.load(&path).unwrap()
        };
        let all: Vec<_> = std::thread::scope(|scope| {
            let start = || scope.spawn(load);
            let threads: Vec<_> = (0..8).map(|_| start()).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|loaded| Arc::ptr_eq(loaded, &all[0])));
    }

    #[test]
    fn the_world_is_read_from_the_exports() {
        let entry = |names: &[&str]| Entry::of(names.iter().copied());
        assert_eq!(entry(&["wasi:cli/run@0.2.6"]), Ok(Entry::CommandP2));
        assert_eq!(entry(&["wasi:cli/run@0.3.0"]), Ok(Entry::CommandP3));
        assert_eq!(
            entry(&["wasi:cli/run@0.2.0", "wasi:http/incoming-handler@0.2.0"]),
            Ok(Entry::HttpP2)
        );
        assert_eq!(entry(&["wasi:http/handler@0.3.0", "run"]), Ok(Entry::HttpP3));
        assert_eq!(entry(&["a:b/c"]), Ok(Entry::Reactor));
    }

    #[test]
    fn what_nobody_can_call_is_refused() {
        let entry = |names: &[&str]| Entry::of(names.iter().copied());
        assert_eq!(entry(&[]), Err(NoEntry::Nothing));
        for draft in ["wasi:http/handler@0.3.0-rc-2025-09-16", "wasi:cli/run@0.20.0"] {
            assert_eq!(entry(&["a:b/c", draft]), Err(NoEntry::OtherVersion(draft.to_owned())));
        }
    }
}
