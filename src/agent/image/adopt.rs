//! Components that come from a file of this node instead of a registry: tools, and what users put
//! into volumes.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::agent::dirs::temporary_name;
use crate::agent::image::compile::By;
use crate::agent::image::{ImageError, Images};
use crate::rt::check_room;

/// Largest file, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes copied at once.
const COPY_BYTES: usize = 64 * 1024;
/// Bytes of new components that one pod may bring, and over which time: a probe may run another one at each
/// try, and what is made of them is the node's.
const BROUGHT_BYTES_MAX: u64 = 2 * FILE_BYTES_MAX;
const BROUGHT_OVER: Duration = Duration::from_secs(60);
/// Pods that are remembered.
const BRINGERS_MAX: usize = 1024;
/// Files remembered with their digest: a probe runs its tool every second.
const ADOPTED_MAX: usize = 256;
/// A file that was changed so lately may change again without its stamp telling: file systems count
/// time in ticks.
const SETTLED_SECONDS: i64 = 2;

/// What tells that a file is still the one it was. The time of the last change is the system's own:
/// nobody can set it, as a guest can the time of modification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Digests of files, by stamp; at most [`ADOPTED_MAX`].
pub(super) type Adopted = BTreeMap<Stamp, String>;

/// Since when a pod brings components, and how many bytes of them; at most [`BRINGERS_MAX`].
pub(super) type Bringers = BTreeMap<String, (Instant, u64)>;

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

impl Images {
    /// The compiled code of a component in a file. Keeps a copy by its digest: the file may change
    /// while it is compiled.
    pub(super) async fn adopt_file(
        &self,
        file: &Path,
        whose: Option<&str>,
    ) -> Result<PathBuf, ImageError> {
        let mut open = File::open(file).await?;
        let stamp = Stamp::of(&open.metadata().await?);
        let known = self.adopted.lock().get(&stamp).cloned();
        let hex = match known {
            Some(hex) => hex,
            None => {
                let hex = digest(&mut open, None, FILE_BYTES_MAX).await?;
                self.remember_adopted(stamp, Stamp::of(&open.metadata().await?), &hex);
                hex
            }
        };
        // Servers compile what many nodes run, not what a guest may change from try to try.
        let by = if whose.is_some() { By::Node } else { By::Fleet };
        if self.blob(&hex).exists() {
            return self.compiled(&hex, by).await;
        }
        let size = open.metadata().await?.len();
        if let Some(whose) = whose {
            self.note_brought(whose, size)?;
        }
        let folder = self.dirs.images().join("sha256");
        fs::create_dir_all(&folder).await?;
        if let Err(cause) = check_room(&folder, size) {
            self.is_full.notify_one();
            return Err(cause.into());
        }
        let temporary = folder.join(temporary_name(file));
        let copied = async {
            let mut copy = File::create(&temporary).await?;
            let hex = digest(&mut File::open(file).await?, Some(&mut copy), FILE_BYTES_MAX).await?;
            // What was written last may not have been: syncing does not tell.
            copy.flush().await?;
            copy.sync_all().await?;
            fs::rename(&temporary, self.blob(&hex)).await.map(|()| hex)
        };
        match copied.await {
            Ok(hex) => self.compiled(&hex, by).await,
            Err(cause) => {
                let _ = fs::remove_file(&temporary).await;
                Err(cause.into())
            }
        }
    }

    /// Counts a new component of a pod.
    fn note_brought(&self, whose: &str, bytes: u64) -> Result<(), ImageError> {
        let now = Instant::now();
        let mut bringers = self.bringers.lock();
        bringers.retain(|_, (since, _)| now.duration_since(*since) < BROUGHT_OVER);
        let has_place = bringers.contains_key(whose) || bringers.len() < BRINGERS_MAX;
        let (since, brought) = bringers.get(whose).copied().unwrap_or((now, 0));
        let sum = brought.saturating_add(bytes);
        if !has_place || (brought > 0 && sum > BROUGHT_BYTES_MAX) {
            let message = format!(
                "the pod has other components to run each time: more than {BROUGHT_BYTES_MAX} bytes of them in \
                 {} s",
                BROUGHT_OVER.as_secs()
            );
            return Err(ImageError::Compile { message, wait: BROUGHT_OVER });
        }
        bringers.insert(whose.to_owned(), (since, sum));
        Ok(())
    }

    /// Remembers the digest of a file that had the one stamp before it was read and the other one
    /// after.
    fn remember_adopted(&self, before: Stamp, after: Stamp, hex: &str) {
        let age = self.clock.now().as_second().saturating_sub(after.changed.0);
        if before != after || age < SETTLED_SECONDS {
            return;
        }
        let mut adopted = self.adopted.lock();
        while adopted.len() >= ADOPTED_MAX {
            adopted.pop_first();
        }
        adopted.insert(before, hex.to_owned());
    }
}

/// Reads a file, copies it if asked to, and says its SHA-256 in hex.
pub(super) async fn digest(
    file: &mut File,
    mut copy: Option<&mut File>,
    bytes_max: u64,
) -> io::Result<String> {
    let mut file = file.take(bytes_max + 1);
    let (mut hash, mut buffer, mut size) = (Sha256::new(), vec![0; COPY_BYTES], 0_u64);
    loop {
        let count = file.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        size += bytes.len() as u64;
        if size > bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        hash.update(bytes);
        if let Some(copy) = &mut copy {
            copy.write_all(bytes).await?;
        }
    }
    Ok(hex::encode(hash.finalize()))
}

#[cfg(test)]
mod tests {
    use axum::Router;

    use super::*;
    use crate::agent::image::image_test::{COPY, Node, WASM};

    #[tokio::test]
    async fn a_file_that_did_not_change_is_not_read_again_and_one_that_did_is() {
        // The clock of the test stands years after all files: they have settled.
        let node = Node::new(Router::new(), COPY, "");
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tool.wasm");
        std::fs::write(&file, WASM).unwrap();
        let first = node.images.adopt_file(&file, None).await.unwrap();
        let other = b"\0asm another one".to_vec();
        let hex = hex::encode(Sha256::digest(&other));
        let stamp = Stamp::of(&std::fs::metadata(&file).unwrap());
        // What is remembered is taken: nobody reads the file to know better.
        std::fs::write(node.images.blob(&hex), &other).unwrap();
        assert!(node.images.adopted.lock().insert(stamp, hex.clone()).is_some());
        let second = node.images.adopt_file(&file, None).await.unwrap();
        assert_ne!(first, second);
        std::fs::write(&file, WASM).unwrap();
        assert_eq!(node.images.adopt_file(&file, None).await.unwrap(), first, "it was written to");
        for n in 0..ADOPTED_MAX as u64 {
            let stamp = Stamp { inode: u64::MAX - n, ..stamp };
            node.images.remember_adopted(stamp, stamp, &hex);
        }
        assert_eq!(node.images.adopted.lock().len(), ADOPTED_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_brings_so_much_in_a_minute_and_takes_nothing_of_others() {
        let node = Node::new(Router::new(), COPY, "");
        let bring = |whose, bytes| node.images.note_brought(whose, bytes).is_ok();
        assert!(bring("a", FILE_BYTES_MAX) && bring("a", FILE_BYTES_MAX));
        assert!(!bring("a", 1), "another one each time");
        assert!(bring("b", 1), "others may");
        tokio::time::advance(BROUGHT_OVER).await;
        assert!(bring("a", FILE_BYTES_MAX));
    }

    #[tokio::test]
    async fn a_file_that_was_just_written_is_not_trusted_to_stay() {
        let node = Node::new(Router::new(), COPY, "");
        let stamp = Stamp { device: 1, inode: 1, size: 1, modified: (0, 0), changed: (0, 0) };
        let now = node.images.clock.now().as_second();
        node.images.remember_adopted(stamp, Stamp { size: 2, ..stamp }, "x");
        let young = Stamp { changed: (now, 0), ..stamp };
        node.images.remember_adopted(young, young, "x");
        assert!(node.images.adopted.lock().is_empty());
    }
}
