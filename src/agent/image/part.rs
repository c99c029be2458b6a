//! A blob that is being received: appended to, resumed, and checked before it gets its name.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use http_body_util::BodyExt as _;
use sha2::{Digest as _, Sha256};
use tokio::fs::{self, File, OpenOptions};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use crate::agent::dirs::make_private;
use crate::agent::image::distribution::Fault;
use crate::agent::image::transport::Body;
use crate::rt::{Room, check_room};

/// Bytes read at a time of a blob that was begun before.
const READ_BYTES: usize = 64 * 1024;
/// Ending of a blob that is not complete.
pub(super) const PART: &str = "part";

/// The least progress of a transfer: whoever sends fewer than `bytes` within `window` has stalled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) bytes: u64,
    pub(super) window: Duration,
}

/// What is expected of one transfer, and who is told of it.
pub(super) struct Transfer<'a> {
    /// Where the bytes start that come.
    pub(super) start: u64,
    /// Size of the blob, or the most that it may have.
    pub(super) limit: u64,
    pub(super) pace: Pace,
    /// Told of each piece: its bytes, and those of the blob that are here now.
    pub(super) heard: &'a (dyn Fn(u64, u64) + Send + Sync),
}

/// A blob that is being received: its name is fixed, so that the next try goes on with it.
pub(super) struct Part {
    place: PathBuf,
    path: PathBuf,
    file: File,
    hash: Sha256,
    size: u64,
    room: Room,
    /// It holds bytes of an earlier life, which a power cut may have torn.
    is_resumed: bool,
}

impl Part {
    /// Opens what is there of the blob at `place`, and hashes it.
    pub(super) async fn open(place: PathBuf) -> Result<Self, Fault> {
        if let Some(folder) = place.parent() {
            make_private(folder)?;
        }
        let path = place.with_extension(PART);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .await?;
        let (mut hash, mut size) = (Sha256::new(), 0_u64);
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = file.read(&mut buffer).await?;
            let Some(read) = buffer.get(..count).filter(|read| !read.is_empty()) else { break };
            hash.update(read);
            size += count as u64;
        }
        let room = Room::new(place.parent().unwrap_or(&place));
        Ok(Self { place, path, file, hash, size, room, is_resumed: size > 0 })
    }

    /// Bytes that are here.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Gives up: nothing stays of it.
    pub(super) async fn remove(self) {
        let _ = fs::remove_file(&self.path).await;
    }

    /// Gives up, and leaves nothing, unless the disk has room for what is still to come.
    pub(super) async fn check_room(&mut self, size: u64) -> Result<(), Fault> {
        let Some(folder) = self.place.parent() else { return Ok(()) };
        let checked = check_room(folder, size.saturating_sub(self.size));
        self.or_restart(checked).await
    }

    /// What is of no use any more is not to fill a disk that is full.
    async fn or_restart(&mut self, checked: std::io::Result<()>) -> Result<(), Fault> {
        if let Err(cause) = checked {
            self.restart().await?;
            return Err(cause.into());
        }
        Ok(())
    }

    /// Adds bytes at the end. When the disk has no room for them, nothing is left of the others.
    pub(super) async fn append(&mut self, chunk: &[u8]) -> Result<(), Fault> {
        let has_room = self.room.take(chunk.len() as u64);
        self.or_restart(has_room).await?;
        self.file.write_all(chunk).await?;
        self.hash.update(chunk);
        self.size += chunk.len() as u64;
        Ok(())
    }

    /// Forgets what is here.
    pub(super) async fn restart(&mut self) -> Result<(), Fault> {
        self.file = File::create(&self.path).await?;
        (self.hash, self.size, self.is_resumed) = (Sha256::new(), 0, false);
        Ok(())
    }

    /// Takes a body until it ends or stalls.
    ///
    /// # Errors
    ///
    /// [`Fault::Unavailable`]: it broke off or stalled; what came is kept. [`Fault::Refused`]: it is
    /// longer than it may be.
    pub(super) async fn receive(
        &mut self,
        body: Body,
        transfer: Transfer<'_>,
    ) -> Result<(), Fault> {
        let Transfer { start, limit, pace, heard } = transfer;
        if start != self.size {
            self.restart().await?;
        }
        let mut chunks = body.into_data_stream();
        let (mut since, mut had) = (Instant::now(), self.size);
        loop {
            let chunk = tokio::time::timeout_at(since + pace.window, chunks.try_next())
                .await
                .map_err(|_| Fault::unavailable("the transfer makes no progress"))?
                .map_err(|cause| Fault::unavailable(format!("the transfer broke off: {cause}")))?;
            let Some(chunk) = chunk else { return Ok(()) };
            let bytes = chunk.len() as u64;
            if self.size.saturating_add(bytes) > limit {
                self.restart().await?;
                let why = format!("it sent more than the {limit} bytes announced");
                return Err(Fault::Refused(why));
            }
            self.append(&chunk).await?;
            heard(bytes, self.size);
            if self.size >= had.saturating_add(pace.bytes) {
                (since, had) = (Instant::now(), self.size);
            }
        }
    }

    /// Puts the blob into its place if it is what its digest says.
    pub(super) async fn finish(&mut self, hex: &str) -> Result<(), Fault> {
        let is_good = hex::encode(self.hash.clone().finalize()) == hex;
        if !is_good {
            let was_resumed = self.is_resumed;
            self.restart().await?;
            let why = "it sent other bytes than the digest names".to_owned();
            return Err(if was_resumed { Fault::unavailable(why) } else { Fault::Refused(why) });
        }
        self.file.flush().await?;
        self.file.sync_all().await?;
        fs::rename(&self.path, &self.place).await?;
        if let Some(folder) = self.place.parent() {
            File::open(folder).await?.sync_all().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::StreamExt as _;
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    const PACE: Pace = Pace { bytes: 100, window: Duration::from_secs(30) };

    /// A piece of `bytes` every `pause`, for ever.
    fn drip(bytes: usize, pause: Duration) -> Body {
        let pieces = futures_util::stream::repeat(()).then(move |()| async move {
            tokio::time::sleep(pause).await;
            Ok(Frame::data(Bytes::from(vec![7; bytes])))
        });
        StreamBody::new(pieces).boxed_unsync()
    }

    #[tokio::test]
    async fn a_disk_that_is_full_keeps_nothing_of_what_does_not_fit() {
        let folder = tempfile::tempdir().unwrap();
        let mut part = Part::open(folder.path().join("a")).await.unwrap();
        part.append(b"bytes").await.unwrap();
        part.check_room(1000).await.unwrap();
        assert_eq!(part.size(), 5);
        let full = part.check_room(u64::MAX).await;
        assert!(
            matches!(full, Err(Fault::Disk(why)) if why.kind() == std::io::ErrorKind::StorageFull)
        );
        assert_eq!(part.size(), 0);
        assert_eq!(std::fs::metadata(folder.path().join("a.part")).unwrap().len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_drips_has_stalled_and_a_slow_one_has_not() {
        let folder = tempfile::tempdir().unwrap();
        let mut part = Part::open(folder.path().join("a")).await.unwrap();
        let transfer = |limit| Transfer { start: 0, limit, pace: PACE, heard: &|_, _| {} };
        let started = Instant::now();
        let dripped = part.receive(drip(1, Duration::from_secs(1)), transfer(5000)).await;
        assert!(dripped.unwrap_err().to_string().contains("no progress"));
        assert_eq!(started.elapsed(), PACE.window);
        assert!(part.size() > 0, "what came is kept");
        // Slow, and long: until it has more than it may.
        let slow = part.receive(drip(50, Duration::from_secs(10)), transfer(5000)).await;
        assert!(slow.unwrap_err().to_string().contains("more than the 5000"));
    }
}
