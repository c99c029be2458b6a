//! Buckets of `wasi:keyvalue` in the cluster's store.
//!
//! The bucket `cache` of a namespace is its ConfigMap `keyvalue-cache`, one entry of `binaryData`
//! for each key, so that backups, quotas and kubectl see it like everything else. Every write
//! names the version that was read, so that none is lost.
//!
//! A write is an entry of the cluster's log, which all share: a namespace has so many of them.
//!
//! Keys may hold any character, names of entries only some: what is not a letter, a digit, `-` or
//! an inner `.` is written as `_` and two hexadecimal digits for each byte.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use edgeorc_runtime::{KeyValue, KeyValueError, PodId, incremented};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};

use crate::agent::pace::{Pace, Rate};

/// Label of a bucket's ConfigMap, with the bucket's name.
const LABEL: &str = "edgeorc.io/keyvalue";
/// What all keys and values of a bucket may take, in bytes: the size of a ConfigMap.
const BUCKET_BYTES_MAX: usize = 1 << 20;
/// Longest name of an entry, in bytes.
const ENTRY_BYTES_MAX: usize = 253;
/// How often a write is tried again because somebody else wrote first.
const CONFLICTS_MAX: u32 = 20;
/// Pause before the next try, times the number of tries so far.
const CONFLICT_PAUSE: Duration = Duration::from_millis(2);

/// Writes of a namespace's guests on one node.
const WRITES: Rate = Rate { per_second: 50, burst: 200, wait_max: Duration::from_secs(10) };

type Values = BTreeMap<String, ByteString>;

/// [`KeyValue`] over the API. Made before there is a client; until it is set, guests are told that
/// there is no store.
pub struct ClusterKeyValue {
    client: OnceLock<kube::Client>,
    /// By namespace.
    writes: Pace,
}

impl Default for ClusterKeyValue {
    fn default() -> Self {
        Self { client: OnceLock::new(), writes: Pace::new(WRITES) }
    }
}

impl std::fmt::Debug for ClusterKeyValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ClusterKeyValue").field(&self.client.get().is_some()).finish()
    }
}

impl ClusterKeyValue {
    /// Gives buckets their store. Only the first call has an effect.
    pub fn set(&self, client: kube::Client) {
        let _ = self.client.set(client);
    }

    fn api(&self, pod: &PodId) -> Result<Api<ConfigMap>, KeyValueError> {
        let client = self.client.get().ok_or_else(|| other("the node is starting"))?;
        Ok(Api::namespaced(client.clone(), &pod.namespace))
    }

    async fn read(&self, pod: &PodId, bucket: &str) -> Result<Option<ConfigMap>, KeyValueError> {
        let map = self.api(pod)?.get_opt(&object_name(bucket)).await.map_err(failed)?;
        if map.as_ref().is_some_and(|map| !is_bucket(map, bucket)) {
            return Err(other(format!(
                "the ConfigMap {} is none of edgeorc's: it lacks the label {LABEL}",
                object_name(bucket)
            )));
        }
        Ok(map)
    }

    async fn values(&self, pod: &PodId, bucket: &str) -> Result<Values, KeyValueError> {
        let map = self.read(pod, bucket).await?;
        Ok(map.and_then(|map| map.binary_data).unwrap_or_default())
    }

    /// Reads, changes and writes, until nobody wrote in between.
    async fn change<T>(
        &self,
        pod: &PodId,
        bucket: &str,
        apply: impl Fn(&mut Values) -> Result<T, KeyValueError> + Send + Sync,
    ) -> Result<T, KeyValueError> {
        let (api, name) = (self.api(pod)?, object_name(bucket));
        for attempt in 0..CONFLICTS_MAX {
            tokio::time::sleep(CONFLICT_PAUSE * attempt).await;
            self.writes
                .turn(&pod.namespace)
                .await
                .map_err(|_| other("the namespace's guests write too often"))?;
            let live = self.read(pod, bucket).await?;
            let is_there = live.is_some();
            let mut map = live.unwrap_or_else(|| empty(bucket));
            let mut values = map.binary_data.take().unwrap_or_default();
            let outcome = apply(&mut values)?;
            check_size(&values)?;
            map.binary_data = Some(values);
            let params = PostParams::default();
            let written = if is_there {
                api.replace(&name, &params, &map).await
            } else {
                api.create(&params, &map).await
            };
            match written {
                Ok(_) => return Ok(outcome),
                // Somebody else wrote, made or deleted it.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Err(other("too many writers at the same time"))
    }
}

#[async_trait]
impl KeyValue for ClusterKeyValue {
    async fn get(
        &self,
        pod: &PodId,
        bucket: &str,
        keys: &[String],
    ) -> Result<Vec<Option<Bytes>>, KeyValueError> {
        let values = self.values(pod, bucket).await?;
        keys.iter()
            .map(|key| {
                let value = values.get(&entry_name(key)?);
                Ok(value.map(|value| Bytes::copy_from_slice(&value.0)))
            })
            .collect()
    }

    async fn write(
        &self,
        pod: &PodId,
        bucket: &str,
        changes: Vec<(String, Option<Bytes>)>,
    ) -> Result<(), KeyValueError> {
        let changes = changes
            .into_iter()
            .map(|(key, value)| Ok((entry_name(&key)?, value)))
            .collect::<Result<Vec<_>, KeyValueError>>()?;
        self.change(pod, bucket, |values| {
            for (name, value) in &changes {
                match value {
                    Some(value) => values.insert(name.clone(), ByteString(value.to_vec())),
                    None => values.remove(name),
                };
            }
            Ok(())
        })
        .await
    }

    async fn keys(&self, pod: &PodId, bucket: &str) -> Result<Vec<String>, KeyValueError> {
        let mut keys: Vec<_> =
            self.values(pod, bucket).await?.keys().map(|name| key_of(name)).collect();
        keys.sort_unstable();
        Ok(keys)
    }

    async fn increment(
        &self,
        pod: &PodId,
        bucket: &str,
        key: &str,
        delta: u64,
    ) -> Result<u64, KeyValueError> {
        let name = entry_name(key)?;
        self.change(pod, bucket, |values| {
            let sum = incremented(values.get(&name).map(|value| value.0.as_slice()), delta)?;
            values.insert(name.clone(), ByteString(sum.to_string().into_bytes()));
            Ok(sum)
        })
        .await
    }
}

fn other(text: impl Into<String>) -> KeyValueError {
    KeyValueError::Other(text.into())
}

/// What a guest hears when the API did not do it.
fn failed(error: kube::Error) -> KeyValueError {
    match error {
        kube::Error::Api(status) if status.code == 403 => KeyValueError::AccessDenied,
        kube::Error::Api(status) => other(format!("the cluster refused: {}", status.reason)),
        _ => other("the cluster does not answer"),
    }
}

fn object_name(bucket: &str) -> String {
    format!("keyvalue-{bucket}")
}

fn is_bucket(map: &ConfigMap, bucket: &str) -> bool {
    let labels = map.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get(LABEL)).is_some_and(|value| value == bucket)
}

fn empty(bucket: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(object_name(bucket)),
            labels: Some(BTreeMap::from([(LABEL.to_owned(), bucket.to_owned())])),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

fn check_size(values: &Values) -> Result<(), KeyValueError> {
    let bytes: usize = values.iter().map(|(name, value)| name.len() + value.0.len()).sum();
    if bytes > BUCKET_BYTES_MAX {
        return Err(other(format!(
            "the bucket would have {bytes} bytes, and can have {BUCKET_BYTES_MAX}"
        )));
    }
    Ok(())
}

/// The entry of a key.
fn entry_name(key: &str) -> Result<String, KeyValueError> {
    use std::fmt::Write as _;

    let mut name = String::with_capacity(key.len());
    for (at, byte) in key.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' => name.push(char::from(byte)),
            b'.' if at > 0 => name.push('.'),
            // Writing to a string cannot fail.
            _ => _ = write!(name, "_{byte:02x}"),
        }
    }
    if name.len() > ENTRY_BYTES_MAX {
        return Err(other(format!(
            "the key is too long for this store: {} of {ENTRY_BYTES_MAX} bytes, with three for \
             each that is no letter, digit, dash or dot",
            name.len()
        )));
    }
    Ok(name)
}

/// The key of an entry. What was not written by [`entry_name`] is told as it is.
fn key_of(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = tail
            .get(..2)
            .filter(|_| *first == b'_')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        (rest, _) = match escaped {
            Some(byte) => (tail.get(2..).unwrap_or_default(), bytes.push(byte)),
            None => (tail, bytes.push(*first)),
        };
    }
    String::from_utf8(bytes).unwrap_or_else(|_| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_comes_back_from_its_entry() {
        for (key, name) in [
            ("plain-Key.1", "plain-Key.1"),
            ("a/b c", "a_2fb_20c"),
            ("..", "_2e."),
            ("_2e", "_5f2e"),
            ("ü", "_c3_bc"),
        ] {
            assert_eq!(entry_name(key).unwrap(), name);
            assert_eq!(key_of(name), key);
        }
        assert_eq!(key_of("_zz_"), "_zz_");
        assert!(entry_name(&"a".repeat(253)).is_ok());
        assert!(entry_name(&"/".repeat(100)).is_err());
    }

    #[test]
    fn a_bucket_that_grows_too_large_says_so() {
        let value = |bytes| BTreeMap::from([("k".to_owned(), ByteString(vec![0; bytes]))]);
        assert!(check_size(&value(BUCKET_BYTES_MAX - 1)).is_ok());
        let error = check_size(&value(BUCKET_BYTES_MAX)).unwrap_err();
        assert!(error.to_string().contains("can have 1048576"), "{error}");
    }

    #[test]
    fn a_config_map_of_somebody_else_is_left_alone() {
        assert!(is_bucket(&empty("cache"), "cache"));
        assert!(!is_bucket(&ConfigMap::default(), "cache"));
    }
}
