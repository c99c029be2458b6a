//! The interfaces for guests.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use wasmtime::component::{HasData, Linker, Resource, ResourceTable, ResourceTableError};

use self::generated::wasi::keyvalue::{atomics, batch, store};
use super::{
    BATCH_KEYS_MAX, BUCKET_DEFAULT, KEY_BYTES_MAX, KeyValue, KeyValueError, PAGE_KEYS_MAX,
    VALUE_BYTES_MAX, is_bucket_name,
};
use crate::guest::Guest;
use crate::types::PodId;

/// How long the store may take to answer one call.
const CALL_WAIT_MAX: Duration = Duration::from_secs(10);

#[allow(clippy::all, unreachable_pub, missing_debug_implementations, reason = "generated")]
mod generated {
    wasmtime::component::bindgen!({
        path: "wit/keyvalue.wit",
        world: "wasi:keyvalue/imports",
        imports: { default: async | trappable },
        with: { "wasi:keyvalue/store.bucket": super::Bucket },
        trappable_error_type: { "wasi:keyvalue/store.error" => super::KeyValueError },
    });
}

/// An open bucket: its name.
#[derive(Debug)]
#[expect(unreachable_pub, reason = "the generated code re-exports it")]
pub struct Bucket(Arc<str>);

/// What the host functions work on.
pub(crate) struct KeyValueView<'a> {
    pub(crate) table: &'a mut ResourceTable,
    pub(crate) pod: &'a PodId,
    /// Buckets that may be opened.
    pub(crate) granted: Option<&'a BTreeSet<String>>,
    pub(crate) store: &'a Arc<dyn KeyValue>,
}

struct GuestKeyValue;

impl HasData for GuestKeyValue {
    type Data<'a> = KeyValueView<'a>;
}

/// Links the three interfaces.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    store::add_to_linker::<Guest, GuestKeyValue>(linker, Guest::keyvalue)?;
    atomics::add_to_linker::<Guest, GuestKeyValue>(linker, Guest::keyvalue)?;
    batch::add_to_linker::<Guest, GuestKeyValue>(linker, Guest::keyvalue)
}

impl From<ResourceTableError> for KeyValueError {
    fn from(error: ResourceTableError) -> Self {
        Self::Other(error.to_string())
    }
}

impl KeyValueView<'_> {
    fn bucket(&self, bucket: &Resource<Bucket>) -> Result<Arc<str>, KeyValueError> {
        Ok(Arc::clone(&self.table.get(bucket)?.0))
    }

    async fn read(
        &mut self,
        bucket: &Resource<Bucket>,
        keys: &[String],
    ) -> Result<Vec<Option<Bytes>>, KeyValueError> {
        keys.iter().try_for_each(|key| check_key(key))?;
        let bucket = self.bucket(bucket)?;
        in_time(self.store.get(self.pod, &bucket, keys)).await
    }

    async fn change(
        &mut self,
        bucket: &Resource<Bucket>,
        changes: Vec<(String, Option<Vec<u8>>)>,
    ) -> Result<(), KeyValueError> {
        let bucket = self.bucket(bucket)?;
        let mut checked = Vec::with_capacity(changes.len());
        for (key, value) in changes {
            check_key(&key)?;
            if value.as_ref().is_some_and(|value| value.len() > VALUE_BYTES_MAX) {
                return Err(KeyValueError::Other(format!(
                    "the value is larger than {VALUE_BYTES_MAX} bytes"
                )));
            }
            checked.push((key, value.map(Bytes::from)));
        }
        in_time(self.store.write(self.pod, &bucket, checked)).await
    }
}

fn check_key(key: &str) -> Result<(), KeyValueError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(KeyValueError::Other(format!("a key has 1 to {KEY_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn check_batch(count: usize) -> Result<(), KeyValueError> {
    if count > BATCH_KEYS_MAX {
        return Err(KeyValueError::Other(format!("a batch has at most {BATCH_KEYS_MAX} keys")));
    }
    Ok(())
}

async fn in_time<T>(
    call: impl Future<Output = Result<T, KeyValueError>>,
) -> Result<T, KeyValueError> {
    tokio::time::timeout(CALL_WAIT_MAX, call)
        .await
        .unwrap_or_else(|_| Err(KeyValueError::Other("the store did not answer in time".into())))
}

impl store::Host for KeyValueView<'_> {
    async fn open(&mut self, identifier: String) -> Result<Resource<Bucket>, KeyValueError> {
        let name = if identifier.is_empty() { BUCKET_DEFAULT } else { &identifier };
        if !is_bucket_name(name) {
            return Err(KeyValueError::NoSuchStore);
        }
        if !self.granted.is_some_and(|granted| granted.contains(name)) {
            return Err(KeyValueError::AccessDenied);
        }
        Ok(self.table.push(Bucket(name.into()))?)
    }

    fn convert_error(&mut self, error: KeyValueError) -> wasmtime::Result<store::Error> {
        Ok(match error {
            KeyValueError::NoSuchStore => store::Error::NoSuchStore,
            KeyValueError::AccessDenied => store::Error::AccessDenied,
            KeyValueError::Other(text) => store::Error::Other(text),
        })
    }
}

impl store::HostBucket for KeyValueView<'_> {
    async fn get(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
    ) -> Result<Option<Vec<u8>>, KeyValueError> {
        let values = self.read(&bucket, &[key]).await?;
        Ok(values.into_iter().next().flatten().map(Vec::from))
    }

    async fn set(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        value: Vec<u8>,
    ) -> Result<(), KeyValueError> {
        self.change(&bucket, vec![(key, Some(value))]).await
    }

    async fn delete(&mut self, bucket: Resource<Bucket>, key: String) -> Result<(), KeyValueError> {
        self.change(&bucket, vec![(key, None)]).await
    }

    async fn exists(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
    ) -> Result<bool, KeyValueError> {
        Ok(self.read(&bucket, &[key]).await?.into_iter().any(|value| value.is_some()))
    }

    /// The cursor counts keys in their order: keys that are set or deleted meanwhile may make the
    /// next page skip or repeat one.
    async fn list_keys(
        &mut self,
        bucket: Resource<Bucket>,
        cursor: Option<u64>,
    ) -> Result<store::KeyResponse, KeyValueError> {
        let bucket = self.bucket(&bucket)?;
        let keys = in_time(self.store.keys(self.pod, &bucket)).await?;
        let begin = usize::try_from(cursor.unwrap_or(0)).unwrap_or(usize::MAX);
        let end = begin.saturating_add(PAGE_KEYS_MAX);
        let cursor = (end < keys.len()).then(|| u64::try_from(end).unwrap_or(u64::MAX));
        let keys = keys.into_iter().skip(begin).take(PAGE_KEYS_MAX).collect();
        Ok(store::KeyResponse { keys, cursor })
    }

    async fn drop(&mut self, bucket: Resource<Bucket>) -> wasmtime::Result<()> {
        self.table.delete(bucket)?;
        Ok(())
    }
}

impl atomics::Host for KeyValueView<'_> {
    async fn increment(
        &mut self,
        bucket: Resource<Bucket>,
        key: String,
        delta: u64,
    ) -> Result<u64, KeyValueError> {
        check_key(&key)?;
        let bucket = self.bucket(&bucket)?;
        in_time(self.store.increment(self.pod, &bucket, &key, delta)).await
    }
}

type Pair = (String, Vec<u8>);

impl batch::Host for KeyValueView<'_> {
    async fn get_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<Vec<Option<Pair>>, KeyValueError> {
        check_batch(keys.len())?;
        // One value many times over would be in the host's memory as often.
        if keys.iter().collect::<BTreeSet<_>>().len() < keys.len() {
            return Err(KeyValueError::Other("a key is named twice".to_owned()));
        }
        let values = self.read(&bucket, &keys).await?;
        Ok(keys
            .into_iter()
            .zip(values)
            .map(|(key, value)| Some((key, Vec::from(value?))))
            .collect())
    }

    async fn set_many(
        &mut self,
        bucket: Resource<Bucket>,
        key_values: Vec<Pair>,
    ) -> Result<(), KeyValueError> {
        check_batch(key_values.len())?;
        let changes = key_values.into_iter().map(|(key, value)| (key, Some(value))).collect();
        self.change(&bucket, changes).await
    }

    async fn delete_many(
        &mut self,
        bucket: Resource<Bucket>,
        keys: Vec<String>,
    ) -> Result<(), KeyValueError> {
        check_batch(keys.len())?;
        self.change(&bucket, keys.into_iter().map(|key| (key, None)).collect()).await
    }
}

#[cfg(test)]
mod tests {
    use super::batch::Host as _;
    use super::store::{Host as _, HostBucket as _};
    use super::*;
    use crate::keyvalue::MemoryKeyValue;

    struct Pod {
        table: ResourceTable,
        id: PodId,
        granted: BTreeSet<String>,
        store: Arc<dyn KeyValue>,
    }

    impl Pod {
        fn new() -> Self {
            let id = PodId { namespace: "n".into(), name: "p".into(), uid: "u".into() };
            let granted = BTreeSet::from(["default".to_owned()]);
            let store = Arc::new(MemoryKeyValue::default());
            Self { table: ResourceTable::new(), id, granted, store }
        }

        fn view(&mut self) -> KeyValueView<'_> {
            KeyValueView {
                table: &mut self.table,
                pod: &self.id,
                granted: Some(&self.granted),
                store: &self.store,
            }
        }
    }

    fn again(bucket: &Resource<Bucket>) -> Resource<Bucket> {
        Resource::new_borrow(bucket.rep())
    }

    #[tokio::test]
    async fn keys_values_and_batches_are_measured_before_the_store_hears_of_them() {
        let mut pod = Pod::new();
        let mut view = pod.view();
        let bucket = view.open(String::new()).await.unwrap();
        let key = |bytes: usize| "k".repeat(bytes);
        view.set(again(&bucket), key(KEY_BYTES_MAX), vec![0; VALUE_BYTES_MAX]).await.unwrap();
        for (key, bytes) in
            [(key(KEY_BYTES_MAX + 1), 0), (key(0), 0), (key(1), VALUE_BYTES_MAX + 1)]
        {
            let refused = view.set(again(&bucket), key, vec![0; bytes]).await;
            assert!(matches!(refused, Err(KeyValueError::Other(_))), "{refused:?}");
        }
        let many = vec![key(1); BATCH_KEYS_MAX + 1];
        assert!(view.get_many(again(&bucket), many.clone()).await.is_err());
        let twice = vec!["a".to_owned(), "b".to_owned(), "a".to_owned()];
        assert!(view.get_many(again(&bucket), twice).await.is_err());
        assert!(view.delete_many(again(&bucket), many).await.is_err());
        let keys = view.list_keys(again(&bucket), None).await.unwrap().keys;
        assert_eq!(keys, [key(KEY_BYTES_MAX)], "nothing else was written");
    }

    #[tokio::test]
    async fn keys_come_in_pages() {
        let mut pod = Pod::new();
        let mut view = pod.view();
        let bucket = view.open("default".to_owned()).await.unwrap();
        for part in 0..3 {
            let values = (0..500).map(|at| (format!("{:04}", part * 500 + at), vec![1]));
            view.set_many(again(&bucket), values.collect()).await.unwrap();
        }
        let first = view.list_keys(again(&bucket), None).await.unwrap();
        assert_eq!((first.keys.len(), first.cursor), (PAGE_KEYS_MAX, Some(1000)));
        let second = view.list_keys(again(&bucket), first.cursor).await.unwrap();
        assert_eq!((second.keys.len(), second.cursor), (500, None));
        assert_eq!(second.keys.first().map(String::as_str), Some("1000"));
        let beyond = view.list_keys(again(&bucket), Some(u64::MAX)).await.unwrap();
        assert!(beyond.keys.is_empty() && beyond.cursor.is_none());
    }

    #[tokio::test]
    async fn only_granted_buckets_are_opened() {
        let mut pod = Pod::new();
        let mut view = pod.view();
        let refused = view.open("other".to_owned()).await.err();
        assert_eq!(refused, Some(KeyValueError::AccessDenied));
        let refused = view.open("../default".to_owned()).await.err();
        assert_eq!(refused, Some(KeyValueError::NoSuchStore));
    }
}
