//! Bytes from elsewhere into a file, hashed on the way.

use std::io;
use std::path::Path;
use std::time::Duration;

use axum::body::Body;
use futures_util::TryStreamExt as _;
use sha2::{Digest as _, Sha256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::rt::Room;

/// How long one piece may take to arrive.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes read at once of a file that is hashed.
const READ_BYTES: usize = 64 * 1024;

/// Writes a body to `file`, at most `bytes_max` of it, and syncs it: its SHA-256 in hex and its size.
pub(super) async fn to_file(body: Body, file: &Path, bytes_max: u64) -> io::Result<(String, u64)> {
    let mut out = File::create(file).await?;
    let mut room = Room::new(file.parent().unwrap_or(file));
    let (mut hash, mut size) = (Sha256::new(), 0_u64);
    let mut chunks = body.into_data_stream();
    loop {
        let next = tokio::time::timeout(CHUNK_TIMEOUT, chunks.try_next());
        let Some(chunk) = next.await?.map_err(io::Error::other)? else { break };
        size += chunk.len() as u64;
        if size > bytes_max {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        room.take(chunk.len() as u64)?;
        hash.update(&chunk);
        out.write_all(&chunk).await?;
    }
    out.flush().await?;
    out.sync_all().await?;
    Ok((hex::encode(hash.finalize()), size))
}

/// The SHA-256 in hex and the size of a file.
pub(super) async fn of_file(file: &Path) -> io::Result<(String, u64)> {
    let mut file = File::open(file).await?;
    let (mut hash, mut size, mut buffer) = (Sha256::new(), 0_u64, vec![0; READ_BYTES]);
    loop {
        let count = file.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        hash.update(bytes);
        size += bytes.len() as u64;
    }
    Ok((hex::encode(hash.finalize()), size))
}
