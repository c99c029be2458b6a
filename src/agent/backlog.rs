//! What a pod's start leaves for later: files that only the next agent reads, and that no container
//! has to wait for.

use std::path::PathBuf;

use parking_lot::Mutex;

/// Files to be written, in the order they were put: as many as the objects that the pod names.
#[derive(Debug, Default)]
pub(crate) struct Backlog(Mutex<Vec<(PathBuf, Vec<u8>)>>);

impl Backlog {
    /// A file for later.
    pub(crate) fn put(&self, file: PathBuf, content: Vec<u8>) {
        self.0.lock().push((file, content));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// All of them.
    pub(crate) fn into_files(self) -> Vec<(PathBuf, Vec<u8>)> {
        self.0.into_inner()
    }
}
