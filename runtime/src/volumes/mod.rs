//! Size limits of volumes, and the node's part of every file system, for what guests write through
//! WASI 0.2 (and preview 1, which is on top) and 0.3.
//!
//! Data in: calls of guests that make files, make them longer or fill their holes. Data out: what was
//! asked for, or `insufficient-space`, as on a file system of that size.
//!
//! Growth is counted as it happens. Only when a volume seems full is it measured, because files may
//! have been deleted meanwhile. A volume without a limit is as large as its file system, less what is
//! kept for the node.
//!
//! # Invariants
//!
//! - Growth is granted before it happens: a volume is never beyond its limit by guests' writes.
//! - A file counts with its length, holes included: what was granted can be written.
//! - Guests never fill a file system, neither its blocks nor its list of files: the node writes there
//!   as well, and its store ends it when it cannot.
//! - A guest that writes to a full volume cannot keep the node busy with measuring it.
//! - Volumes with different limits are different file systems: nothing is renamed from one to another.

mod p2;
mod p3;
mod quota;

use std::fs::File;
use std::sync::Arc;

use wasmtime::component::{Linker, Resource, ResourceTable};
use wasmtime_wasi::filesystem::Descriptor;

use self::quota::Entry;
pub(crate) use self::quota::{Quota, Quotas, Volumes};
use crate::guest::Guest;

/// Replaces the functions that make files, or make them larger.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    p2::add_to_linker(linker)?;
    p3::add_to_linker(linker)?;
    linker.allow_shadowing(false);
    Ok(())
}

/// The file behind a descriptor. `None` for a folder and for what is no descriptor: whoever is asked
/// next knows what is wrong.
fn file(table: &ResourceTable, descriptor: &Resource<Descriptor>) -> Option<Arc<File>> {
    match table.get(descriptor) {
        Ok(Descriptor::File(file)) => Some(Arc::clone(&file.file)),
        _ => None,
    }
}

/// The folder behind a descriptor.
fn folder(table: &ResourceTable, descriptor: &Resource<Descriptor>) -> Option<Arc<File>> {
    match table.get(descriptor) {
        Ok(Descriptor::Dir(folder)) => Some(Arc::clone(&folder.dir)),
        _ => None,
    }
}

/// The same descriptor for another call.
fn again(descriptor: &Resource<Descriptor>) -> Resource<Descriptor> {
    Resource::new_own(descriptor.rep())
}

/// What an `open-at` will change.
struct Opening {
    /// The entry that it makes.
    entry: Option<Entry>,
    /// Bytes that it cuts off.
    cut: u64,
}

impl Opening {
    /// Length that the file has, if there is one; whether it is made if there is none, and whether it
    /// is cut off.
    fn ask(
        quotas: &Quotas,
        folder: Option<&File>,
        length: Option<u64>,
        makes: bool,
        cuts: bool,
    ) -> Result<Self, Full> {
        let entry = match folder {
            Some(folder) if makes && length.is_none() => Some(quotas.make(folder)?),
            _ => None,
        };
        Ok(Self { entry, cut: length.filter(|_| cuts).unwrap_or_default() })
    }

    /// It happened: `file` is open, to be written or not.
    fn done(self, quotas: &Quotas, file: Option<&Arc<File>>, is_written: bool) {
        if let Some(entry) = self.entry {
            entry.keep();
        }
        if let Some(file) = file
            && let Some(quota) = quotas.of(file)
        {
            quota.give_back(self.cut);
            if is_written {
                quota.opened(file);
            }
        }
    }
}

/// There is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Full;

/// Whether what is in one folder may get a name in another.
fn is_one_volume(quotas: &Quotas, from: Option<&File>, to: Option<&File>) -> bool {
    let of = |folder: Option<&File>| folder.and_then(|folder| quotas.of(folder));
    match (of(from), of(to)) {
        (None, None) => true,
        (Some(from), Some(to)) => Arc::ptr_eq(&from, &to),
        _ => false,
    }
}
