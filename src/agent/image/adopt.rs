//! Components that come from a file of this node instead of a registry: tools, and what users put
//! into volumes.

use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tokio::fs::{self, File};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::agent::dirs::temporary_name;
use crate::agent::image::{ImageError, Images};

/// Largest file, in bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Bytes copied at once.
const COPY_BYTES: usize = 64 * 1024;

impl Images {
    /// The compiled code of a component in a file. Keeps a copy by its digest: the file may change
    /// while it is compiled.
    pub(super) async fn adopt_file(&self, file: &Path) -> Result<PathBuf, ImageError> {
        let hex = digest(file, None).await?;
        if self.blob(&hex).exists() {
            return self.compiled(&hex).await;
        }
        let folder = self.dirs.images().join("sha256");
        fs::create_dir_all(&folder).await?;
        let temporary = folder.join(temporary_name(file));
        let copied = async {
            let mut copy = File::create(&temporary).await?;
            let hex = digest(file, Some(&mut copy)).await?;
            copy.sync_all().await?;
            fs::rename(&temporary, self.blob(&hex)).await.map(|()| hex)
        };
        match copied.await {
            Ok(hex) => self.compiled(&hex).await,
            Err(cause) => {
                let _ = fs::remove_file(&temporary).await;
                Err(cause.into())
            }
        }
    }
}

/// Reads a file, copies it if asked to, and says its SHA-256 in hex.
async fn digest(file: &Path, mut copy: Option<&mut File>) -> io::Result<String> {
    let mut file = File::open(file).await?.take(FILE_BYTES_MAX + 1);
    let (mut hash, mut buffer, mut size) = (Sha256::new(), vec![0; COPY_BYTES], 0_u64);
    loop {
        let count = file.read(&mut buffer).await?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        size += bytes.len() as u64;
        if size > FILE_BYTES_MAX {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        hash.update(bytes);
        if let Some(copy) = &mut copy {
            copy.write_all(bytes).await?;
        }
    }
    Ok(hex::encode(hash.finalize()))
}
