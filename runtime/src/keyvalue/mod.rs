//! `wasi:keyvalue` 0.2.0-draft: buckets of a pod's namespace.
//!
//! Data in: calls of guests. Data out: reads and writes of the node's [`KeyValue`].
//!
//! # Invariants
//!
//! - A guest opens only the buckets that its pod was granted.
//! - Keys, values and batches are measured before the node's store hears of them.

mod host;
mod memory;

use async_trait::async_trait;
use bytes::Bytes;

pub(crate) use self::host::{KeyValueView, add_to_linker};
pub use self::memory::{MemoryKeyValue, NoKeyValue};
use crate::types::PodId;

/// Longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 256;
/// Largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Keys of one batch call.
pub(crate) const BATCH_KEYS_MAX: usize = 1024;
/// Keys of one page of `list-keys`.
pub(crate) const PAGE_KEYS_MAX: usize = 1000;
/// Longest name of a bucket, in bytes.
const BUCKET_BYTES_MAX: usize = 63;
/// The bucket that a guest gets which names none.
pub(crate) const BUCKET_DEFAULT: &str = "default";

/// Why a value was not read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyValueError {
    /// The bucket's name is none. Give up.
    #[error("there is no such bucket")]
    NoSuchStore,
    /// The pod was not granted the bucket. Give up.
    #[error("the pod was not granted the bucket")]
    AccessDenied,
    /// A limit, or trouble behind the store; the text tells which. A guest may try again.
    #[error("{0}")]
    Other(String),
}

/// Where buckets live. Implemented by the node, over the cluster's store.
///
/// Buckets need not be made: one that was never written is empty. All calls are for the namespace
/// of the pod they name. Callers keep to [`KEY_BYTES_MAX`] and [`VALUE_BYTES_MAX`].
#[async_trait]
pub trait KeyValue: Send + Sync + 'static {
    /// Reads the values of `keys`, in their order; `None` for a key that is not there.
    ///
    /// # Errors
    ///
    /// See [`KeyValueError`].
    async fn get(
        &self,
        pod: &PodId,
        bucket: &str,
        keys: &[String],
    ) -> Result<Vec<Option<Bytes>>, KeyValueError>;

    /// Sets (`Some`) and deletes (`None`) values, all of them or none.
    ///
    /// # Errors
    ///
    /// See [`KeyValueError`].
    async fn write(
        &self,
        pod: &PodId,
        bucket: &str,
        changes: Vec<(String, Option<Bytes>)>,
    ) -> Result<(), KeyValueError>;

    /// All keys, sorted.
    ///
    /// # Errors
    ///
    /// See [`KeyValueError`].
    async fn keys(&self, pod: &PodId, bucket: &str) -> Result<Vec<String>, KeyValueError>;

    /// Adds to a number that is kept as decimal digits, atomically; a missing key counts as 0.
    ///
    /// # Errors
    ///
    /// [`KeyValueError::Other`] if the value is no number or the sum does not fit.
    async fn increment(
        &self,
        pod: &PodId,
        bucket: &str,
        key: &str,
        delta: u64,
    ) -> Result<u64, KeyValueError>;
}

/// What `increment` makes of a value; for implementations of [`KeyValue`].
///
/// # Errors
///
/// [`KeyValueError::Other`].
pub fn incremented(value: Option<&[u8]>, delta: u64) -> Result<u64, KeyValueError> {
    let value = match value {
        None => 0,
        Some(value) => std::str::from_utf8(value)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
            .ok_or_else(|| KeyValueError::Other("the value is not a number".to_owned()))?,
    };
    value
        .checked_add(delta)
        .ok_or_else(|| KeyValueError::Other("the sum is larger than 64 bits".to_owned()))
}

/// Whether a bucket can have this name: that of a DNS label.
#[must_use]
pub fn is_bucket_name(name: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !name.is_empty()
        && name.len() <= BUCKET_BYTES_MAX
        && name.bytes().all(is_inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_named_like_labels() {
        for name in ["default", "a", "cache-2", &"a".repeat(63)] {
            assert!(is_bucket_name(name), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a/b", "a.b", "ü", &"a".repeat(64)] {
            assert!(!is_bucket_name(name), "{name}");
        }
    }

    #[test]
    fn numbers_are_digits() {
        assert_eq!(incremented(None, 3), Ok(3));
        assert_eq!(incremented(Some(b"39"), 3), Ok(42));
        assert!(incremented(Some(b"x"), 3).is_err());
        assert!(incremented(Some(b"18446744073709551615"), 1).is_err());
    }
}
