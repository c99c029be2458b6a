//! Tar archives of an OCI image layout: written front to back, read by digest.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use crate::agent::RemoteImage;
use crate::roles::bundle::{BundleError, MANIFEST_BYTES_MAX, hex_of};

/// Size of a header and unit of content.
const BLOCK: usize = 512;
/// Most entries of an archive.
const ENTRIES_MAX: usize = 100_000;
/// Largest index, in bytes.
const INDEX_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Folder of the blobs.
const BLOBS: &str = "blobs/sha256/";
/// Ending of an archive that is not whole.
const PART: &str = "part";

fn file_error(path: &Path) -> impl Fn(io::Error) -> BundleError + use<> {
    let path = path.display().to_string();
    move |cause| BundleError::File { path: path.clone(), cause }
}

/// An archive that is being written.
#[derive(Debug)]
pub(super) struct ArchiveWriter {
    path: PathBuf,
    part: PathBuf,
    file: tokio::fs::File,
    blobs: BTreeSet<String>,
    bytes: u64,
}

impl ArchiveWriter {
    /// Begins beside `path`.
    pub(super) async fn create(path: &Path) -> Result<Self, BundleError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let part = path.with_file_name(format!("{name}.{PART}"));
        let file = tokio::fs::File::create(&part).await.map_err(file_error(path))?;
        let (path, blobs) = (path.to_owned(), BTreeSet::new());
        let mut this = Self { path, part, file, blobs, bytes: 0 };
        this.entry("oci-layout", br#"{"imageLayoutVersion": "1.0.0"}"#).await?;
        Ok(this)
    }

    /// Blobs and their bytes so far.
    pub(super) fn written(&self) -> (usize, u64) {
        (self.blobs.len(), self.bytes)
    }

    /// Adds a manifest, unless it is there.
    pub(super) async fn manifest(&mut self, hex: &str, content: &[u8]) -> Result<(), BundleError> {
        if self.blobs.insert(hex.to_owned()) {
            self.entry(&format!("{BLOBS}{hex}"), content).await?;
            self.bytes += content.len() as u64;
        }
        Ok(())
    }

    /// Adds a blob of an image, unless it is there.
    pub(super) async fn blob(
        &mut self,
        image: &RemoteImage,
        hex: &str,
        size: u64,
    ) -> Result<(), BundleError> {
        if self.blobs.contains(hex) {
            return Ok(());
        }
        self.header(&format!("{BLOBS}{hex}"), size).await?;
        let copied = image.copy_blob(&format!("sha256:{hex}"), size, &mut self.file).await;
        copied
            .map_err(|why| BundleError::Image { image: image.full_name(), why: why.to_string() })?;
        self.pad(size).await?;
        self.blobs.insert(hex.to_owned());
        self.bytes += size;
        Ok(())
    }

    /// Adds the index and gives the archive its name.
    pub(super) async fn finish(mut self, index: &[u8]) -> Result<(), BundleError> {
        self.entry("index.json", index).await?;
        let end = async {
            self.file.write_all(&[0; 2 * BLOCK]).await?;
            self.file.sync_all().await?;
            tokio::fs::rename(&self.part, &self.path).await
        };
        end.await.map_err(file_error(&self.path))
    }

    /// Takes away what was written.
    pub(super) async fn discard(self) {
        let _ = tokio::fs::remove_file(&self.part).await;
    }

    async fn entry(&mut self, name: &str, content: &[u8]) -> Result<(), BundleError> {
        let size = content.len() as u64;
        self.header(name, size).await?;
        self.file.write_all(content).await.map_err(file_error(&self.path))?;
        self.pad(size).await
    }

    async fn header(&mut self, name: &str, size: u64) -> Result<(), BundleError> {
        let header = header(name, size);
        self.file.write_all(&header).await.map_err(file_error(&self.path))
    }

    async fn pad(&mut self, size: u64) -> Result<(), BundleError> {
        let count = usize::try_from(padding(size)).unwrap_or_default();
        let zeros = [0; BLOCK];
        let zeros = zeros.get(..count).unwrap_or_default();
        self.file.write_all(zeros).await.map_err(file_error(&self.path))
    }
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

/// A header of POSIX' ustar format. The same content makes the same bytes: no times, no owners.
fn header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut header = [0_u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| {
        for (into, byte) in header.iter_mut().skip(at).zip(bytes) {
            *into = *byte;
        }
    };
    put(0, name.as_bytes());
    put(100, b"0000644\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{size:011o}\0").as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    for (into, byte) in header.iter_mut().skip(148).zip(sum.as_bytes()) {
        *into = *byte;
    }
    header
}

/// An archive that is read. Nothing is unpacked: what has another name than a blob's is passed by.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    file: Arc<File>,
    /// Offset and size by hex.
    blobs: BTreeMap<String, (u64, u64)>,
    index: Vec<u8>,
}

impl Archive {
    /// Finds what is in the archive.
    ///
    /// # Errors
    ///
    /// [`BundleError::File`], [`BundleError::Archive`].
    pub(super) fn open(path: &Path) -> Result<Self, BundleError> {
        let file = Arc::new(File::open(path).map_err(file_error(path))?);
        let mut this =
            Self { path: path.to_owned(), file, blobs: BTreeMap::new(), index: Vec::new() };
        if !this.file.metadata().map_err(file_error(path))?.is_file() {
            return Err(this.bad("it must be a file: it is read more than once"));
        }
        this.scan()?;
        if this.index.is_empty() {
            return Err(this.bad(
                "there is no index.json in it: it is no OCI image layout; `skopeo copy ... oci-archive:FILE:NAME` and `docker save` make one",
            ));
        }
        Ok(this)
    }

    /// `index.json`.
    pub(super) fn index(&self) -> &[u8] {
        &self.index
    }

    /// Size of a blob, if it is here.
    pub(super) fn size(&self, hex: &str) -> Option<u64> {
        self.blobs.get(hex).map(|(_, size)| *size)
    }

    /// A manifest, checked; `None`: it is not here.
    pub(super) async fn manifest(&self, hex: &str) -> Result<Option<Vec<u8>>, BundleError> {
        let Some(size) = self.size(hex) else { return Ok(None) };
        if size > MANIFEST_BYTES_MAX {
            return Err(self.bad(&format!("the manifest sha256:{hex} has {size} bytes, at most {MANIFEST_BYTES_MAX} are allowed")));
        }
        let content = self.piece(hex, 0, size).await?;
        if hex::encode(Sha256::digest(&content)) != hex {
            return Err(self.bad(&format!("the manifest sha256:{hex} is damaged")));
        }
        Ok(Some(content))
    }

    /// Up to `limit` bytes of a blob.
    pub(super) async fn piece(
        &self,
        hex: &str,
        at: u64,
        limit: u64,
    ) -> Result<Vec<u8>, BundleError> {
        let Some((offset, size)) = self.blobs.get(hex).copied() else {
            return Err(self.bad(&format!("the blob sha256:{hex} is missing")));
        };
        let (file, count) = (Arc::clone(&self.file), limit.min(size.saturating_sub(at)));
        // A slow disk holds up nobody else.
        let read = tokio::task::spawn_blocking(move || read_at(&file, offset + at, count)).await;
        self.checked(read.unwrap_or_else(|cause| Err(io::Error::other(cause))))
    }

    /// An error about this archive.
    pub(super) fn bad(&self, why: &str) -> BundleError {
        BundleError::Archive { path: self.path.display().to_string(), why: why.to_owned() }
    }

    fn checked(&self, read: io::Result<Vec<u8>>) -> Result<Vec<u8>, BundleError> {
        read.map_err(|cause| match cause.kind() {
            io::ErrorKind::UnexpectedEof => self.bad("the archive ends early"),
            _ => file_error(&self.path)(cause),
        })
    }

    fn scan(&mut self) -> Result<(), BundleError> {
        let length = self.file.metadata().map_err(file_error(&self.path))?.len();
        let mut at = 0;
        for _ in 0..ENTRIES_MAX {
            if at + BLOCK as u64 > length {
                return Ok(());
            }
            let header = self.checked(read_at(&self.file, at, BLOCK as u64))?;
            if header.iter().all(|byte| *byte == 0) {
                return Ok(());
            }
            let (name, size) = self.parse(&header, at == 0)?;
            let content = at + BLOCK as u64;
            let end = content.checked_add(size).filter(|end| *end <= length);
            let end = end.ok_or_else(|| self.bad("the archive ends early"))?;
            let is_file = matches!(header.get(156), Some(b'0' | 0));
            let name = name.strip_prefix("./").unwrap_or(&name);
            if is_file && name == "index.json" {
                if size > INDEX_BYTES_MAX {
                    return Err(self.bad("its index.json is too large"));
                }
                self.index = self.checked(read_at(&self.file, content, size))?;
            } else if is_file
                && let Some(hex) = name.strip_prefix(BLOBS)
                && hex_of(&format!("sha256:{hex}")).is_some()
            {
                self.blobs.insert(hex.to_owned(), (content, size));
            }
            at = end + padding(size);
        }
        Err(self.bad(&format!("it has more than {ENTRIES_MAX} entries")))
    }

    /// Name and size of an entry.
    fn parse(&self, header: &[u8], is_first: bool) -> Result<(String, u64), BundleError> {
        let text = |from: usize, to: usize| {
            let field = header.get(from..to).unwrap_or_default();
            let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
            String::from_utf8_lossy(field.get(..end).unwrap_or_default()).into_owned()
        };
        let size = u64::from_str_radix(text(124, 136).trim_matches(' '), 8).ok();
        let is_tar = header.get(257..262) == Some(b"ustar".as_slice());
        match size {
            Some(size) if is_tar => Ok((text(0, 100), size)),
            _ if is_first => {
                Err(self.bad("it is no tar archive; one that is compressed must be unpacked first"))
            }
            _ => Err(self.bad("the archive is damaged")),
        }
    }
}

fn read_at(file: &File, offset: u64, count: u64) -> io::Result<Vec<u8>> {
    let mut content = vec![0; usize::try_from(count).map_err(io::Error::other)?];
    file.read_exact_at(&mut content, offset)?;
    Ok(content)
}
