//! What lies encrypted on the node's disk: the copies of Secrets, of tokens and of certificates that a
//! start without a server needs.
//!
//! ChaCha20-Poly1305 with a key of the node's own, which is made once and never leaves it. What a file
//! is about is bound to it: one that is moved to another name or another pod cannot be read there. A
//! copy of single files, a backup of the pods' folder or a disk that is read in parts gives nothing
//! away; who has the whole disk has the key as well.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::agent::dirs::write_atomic;

/// Begins every sealed file.
const MAGIC: &[u8] = b"EOSEAL1\n";
/// Bytes of a key.
const KEY_BYTES: usize = 32;

/// The key of this node's disk. Cheap to clone.
#[derive(Clone)]
pub(crate) struct NodeKey(Arc<LessSafeKey>);

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(secret)")
    }
}

impl NodeKey {
    /// Reads the key, or makes one. A key that is not whole is made anew: what it sealed is read from
    /// a server again. Blocks on the disk.
    pub(crate) fn open(file: &Path) -> io::Result<Self> {
        let bytes = match std::fs::read(file) {
            Ok(bytes) if bytes.len() == KEY_BYTES => bytes,
            Ok(_) => make(file)?,
            Err(err) if err.kind() == io::ErrorKind::NotFound => make(file)?,
            Err(err) => return Err(err),
        };
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).map_err(refused)?;
        Ok(Self(Arc::new(LessSafeKey::new(key))))
    }

    /// Encrypts `plain`, which is about `about`.
    pub(crate) fn seal(&self, about: &str, plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(refused)?;
        let mut body = plain.to_vec();
        let (aad, number) = (Aad::from(about.as_bytes()), Nonce::assume_unique_for_key(nonce));
        self.0.seal_in_place_append_tag(number, aad, &mut body).map_err(refused)?;
        Ok([MAGIC, &nonce, &body].concat())
    }

    /// What was sealed about `about`; `None` when it was not, not with this key, or was changed.
    pub(crate) fn unseal(&self, about: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let rest = sealed.strip_prefix(MAGIC)?;
        let (nonce, body) = rest.split_at_checked(NONCE_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut body = body.to_vec();
        let plain = self.0.open_in_place(nonce, Aad::from(about.as_bytes()), &mut body).ok()?;
        Some(plain.to_vec())
    }
}

/// Whether a file is sealed.
pub(crate) fn is_sealed(content: &[u8]) -> bool {
    content.starts_with(MAGIC)
}

fn make(file: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; KEY_BYTES];
    SystemRandom::new().fill(&mut bytes).map_err(refused)?;
    write_atomic(file, &bytes)?;
    Ok(bytes)
}

fn refused(_: ring::error::Unspecified) -> io::Error {
    io::Error::other("the cipher refused")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_node_reads_it_and_only_where_it_belongs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("node.key");
        let key = NodeKey::open(&file).unwrap();
        let sealed = key.seal("pod/secret-s", b"hush").unwrap();
        assert!(is_sealed(&sealed) && !sealed.windows(4).any(|part| part == b"hush"));
        let again = NodeKey::open(&file).unwrap();
        assert_eq!(again.unseal("pod/secret-s", &sealed).as_deref(), Some(&b"hush"[..]));
        assert_eq!(again.unseal("other/secret-s", &sealed), None);
        let mut changed = sealed.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert_eq!(again.unseal("pod/secret-s", &changed), None);
        assert_eq!(again.unseal("pod/secret-s", b"EOSEAL1\nshort"), None);
        assert_ne!(key.seal("pod/secret-s", b"hush").unwrap(), sealed);
        let other = NodeKey::open(&folder.path().join("other.key")).unwrap();
        assert_eq!(other.unseal("pod/secret-s", &sealed), None);
        std::fs::write(&file, "cut").unwrap();
        assert_eq!(NodeKey::open(&file).unwrap().unseal("pod/secret-s", &sealed), None);
    }
}
