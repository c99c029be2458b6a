//! A store in memory, and one that is none.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use parking_lot::Mutex;

use super::{KeyValue, KeyValueError, incremented};
use crate::types::PodId;

type Buckets = BTreeMap<(String, String), BTreeMap<String, Bytes>>;

/// Buckets that are gone with the process: for tests, and for a node without a cluster.
#[derive(Debug, Default)]
pub struct MemoryKeyValue(Mutex<Buckets>);

impl MemoryKeyValue {
    fn with<T>(
        &self,
        pod: &PodId,
        bucket: &str,
        work: impl FnOnce(&mut BTreeMap<String, Bytes>) -> T,
    ) -> T {
        let key = (pod.namespace.clone(), bucket.to_owned());
        work(self.0.lock().entry(key).or_default())
    }
}

#[async_trait]
impl KeyValue for MemoryKeyValue {
    async fn get(
        &self,
        pod: &PodId,
        bucket: &str,
        keys: &[String],
    ) -> Result<Vec<Option<Bytes>>, KeyValueError> {
        Ok(self
            .with(pod, bucket, |values| keys.iter().map(|key| values.get(key).cloned()).collect()))
    }

    async fn write(
        &self,
        pod: &PodId,
        bucket: &str,
        changes: Vec<(String, Option<Bytes>)>,
    ) -> Result<(), KeyValueError> {
        self.with(pod, bucket, |values| {
            for (key, value) in changes {
                match value {
                    Some(value) => values.insert(key, value),
                    None => values.remove(&key),
                };
            }
        });
        Ok(())
    }

    async fn keys(&self, pod: &PodId, bucket: &str) -> Result<Vec<String>, KeyValueError> {
        Ok(self.with(pod, bucket, |values| values.keys().cloned().collect()))
    }

    async fn increment(
        &self,
        pod: &PodId,
        bucket: &str,
        key: &str,
        delta: u64,
    ) -> Result<u64, KeyValueError> {
        self.with(pod, bucket, |values| {
            let sum = incremented(values.get(key).map(AsRef::as_ref), delta)?;
            values.insert(key.to_owned(), sum.to_string().into());
            Ok(sum)
        })
    }
}

/// Refuses everything: a runtime that was given no store.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoKeyValue;

fn none<T>() -> Result<T, KeyValueError> {
    Err(KeyValueError::Other("this node has no key-value store".to_owned()))
}

#[async_trait]
impl KeyValue for NoKeyValue {
    async fn get(
        &self,
        _: &PodId,
        _: &str,
        _: &[String],
    ) -> Result<Vec<Option<Bytes>>, KeyValueError> {
        none()
    }

    async fn write(
        &self,
        _: &PodId,
        _: &str,
        _: Vec<(String, Option<Bytes>)>,
    ) -> Result<(), KeyValueError> {
        none()
    }

    async fn keys(&self, _: &PodId, _: &str) -> Result<Vec<String>, KeyValueError> {
        none()
    }

    async fn increment(&self, _: &PodId, _: &str, _: &str, _: u64) -> Result<u64, KeyValueError> {
        none()
    }
}
