//! The tier in the log.

use std::sync::Arc;

use edgeorc_raft::{Precondition, Replica, Txn, TxnOutcome};
use serde_json::Value;

use crate::rt::Rng;
use crate::store::changes::Changes;
use crate::store::object::{Listed, Page, Side, Stored};
use crate::store::{Freshness, Key, Scope, StoreError, StoreWatch};

/// Root of the keys that keep things unique.
const SIDES: &str = "/unique/";

/// Objects in the replicated log.
#[derive(Debug, Clone)]
pub(super) struct Durable {
    replica: Replica,
    rng: Rng,
    changes: Arc<Changes>,
}

impl Durable {
    pub(super) fn new(replica: Replica, changes: Arc<Changes>) -> Self {
        Self { replica, rng: Rng::from_os(), changes }
    }

    async fn catch_up(&self, freshness: Freshness) -> Result<(), StoreError> {
        if freshness == Freshness::Latest {
            self.replica.read_barrier().await?;
        }
        Ok(())
    }

    pub(super) async fn get(
        &self,
        key: &Key,
        freshness: Freshness,
    ) -> Result<Option<Stored>, StoreError> {
        self.catch_up(freshness).await?;
        self.replica.get(&key.bytes()).as_ref().map(Stored::read).transpose()
    }

    pub(super) async fn list(
        &self,
        scope: &Scope,
        page: &Page,
        freshness: Freshness,
    ) -> Result<Listed, StoreError> {
        self.catch_up(freshness).await?;
        let mut start = scope.start();
        if let Some(after) = &page.after
            && *after >= start
        {
            start.clone_from(after);
            // The first key after this one.
            start.push(0);
        }
        let (end, replica) = (scope.end(), &self.replica);
        let found = if page.counts_remaining {
            replica.range(&start, &end, page.limit, page.at)?
        } else {
            replica.range_uncounted(&start, &end, page.limit, page.at)?
        };
        let last_key = found.entries.last().map(|entry| entry.key.to_vec());
        let items = found.entries.iter().map(Stored::read).collect::<Result<_, _>>()?;
        Ok(Listed { items, revision: found.revision, remaining: found.remaining, last_key })
    }

    pub(super) async fn create(
        &self,
        key: &Key,
        object: &Value,
        sides: &[Side],
    ) -> Result<Stored, StoreError> {
        let key = key.bytes();
        let first = Precondition::Absent(key.clone());
        let put = Some((key, Stored::packed(object)?));
        match self.commit(first, put, None, sides).await? {
            Ok(revision) => Ok(Stored::new(object.clone(), revision)),
            Err(_) => Err(StoreError::Exists),
        }
    }

    pub(super) async fn update(
        &self,
        key: &Key,
        revision: u64,
        object: &Value,
        sides: &[Side],
    ) -> Result<Stored, StoreError> {
        let key = key.bytes();
        let first = Precondition::ModRevision(key.clone(), revision);
        let put = Some((key, Stored::packed(object)?));
        match self.commit(first, put, None, sides).await? {
            Ok(revision) => Ok(Stored::new(object.clone(), revision)),
            Err(current) => Err(changed(current)),
        }
    }

    pub(super) async fn delete(
        &self,
        key: &Key,
        revision: u64,
        sides: &[Side],
    ) -> Result<u64, StoreError> {
        let key = key.bytes();
        let first = Precondition::ModRevision(key.clone(), revision);
        self.commit(first, None, Some(key), sides).await?.map_err(changed)
    }

    /// One transaction: `first` guards the object, the claims guard the sides. The inner error is
    /// what the object's last revision is, when `first` did not hold.
    async fn commit(
        &self,
        first: Precondition,
        put: Option<(Vec<u8>, Vec<u8>)>,
        delete: Option<Vec<u8>>,
        sides: &[Side],
    ) -> Result<Result<u64, Option<u64>>, StoreError> {
        let mut txn = Txn {
            preconditions: vec![first],
            puts: put.into_iter().collect(),
            deletes: delete.into_iter().collect(),
            ..Txn::default()
        };
        self.rng.fill(&mut txn.request_id);
        let mut claims = Vec::new();
        for side in sides {
            match side {
                Side::Claim(name) => {
                    let key = format!("{SIDES}{name}").into_bytes();
                    txn.preconditions.push(Precondition::Absent(key.clone()));
                    txn.puts.push((key, Vec::new()));
                    claims.push(name.clone());
                }
                Side::Change { name, key, revision, object } => {
                    txn.preconditions.push(Precondition::ModRevision(key.clone(), *revision));
                    txn.puts.push((key.clone(), Stored::packed(object)?));
                    claims.push(name.clone());
                }
                Side::Release(name) => txn.deletes.push(format!("{SIDES}{name}").into_bytes()),
            }
        }
        match self.replica.txn(txn).await? {
            TxnOutcome::Committed(revision) => Ok(Ok(revision)),
            TxnOutcome::Refused { index: 0, current } => Ok(Err(current.map(|e| e.mod_revision))),
            TxnOutcome::Refused { index, .. } => {
                let key = claims.into_iter().nth(index - 1).unwrap_or_default();
                Err(StoreError::SideTaken { key })
            }
        }
    }

    pub(super) async fn raw_get(&self, key: &str) -> Result<Option<bytes::Bytes>, StoreError> {
        self.replica.read_barrier().await?;
        Ok(self.replica.get(key.as_bytes()).map(|entry| entry.value))
    }

    pub(super) async fn raw_put(&self, key: &str, value: Vec<u8>) -> Result<(), StoreError> {
        let mut txn = Txn { puts: vec![(key.as_bytes().to_vec(), value)], ..Txn::default() };
        self.rng.fill(&mut txn.request_id);
        self.replica.txn(txn).await?;
        Ok(())
    }

    /// Writes a value unless there is one. Returns whether it was written.
    pub(super) async fn raw_create(&self, key: &str, value: Vec<u8>) -> Result<bool, StoreError> {
        let key = key.as_bytes().to_vec();
        let mut txn = Txn {
            preconditions: vec![Precondition::Absent(key.clone())],
            puts: vec![(key, value)],
            ..Txn::default()
        };
        self.rng.fill(&mut txn.request_id);
        Ok(matches!(self.replica.txn(txn).await?, TxnOutcome::Committed(_)))
    }

    pub(super) async fn raw_delete(&self, keys: &[String]) -> Result<(), StoreError> {
        let deletes = keys.iter().map(|key| key.as_bytes().to_vec()).collect();
        let mut txn = Txn { deletes, ..Txn::default() };
        self.rng.fill(&mut txn.request_id);
        self.replica.txn(txn).await?;
        Ok(())
    }

    pub(super) async fn raw_delete_unchanged(
        &self,
        read: &[(String, u64)],
        others: &[String],
    ) -> Result<bool, StoreError> {
        let unchanged = |(key, revision): &(String, u64)| {
            Precondition::ModRevision(key.as_bytes().to_vec(), *revision)
        };
        let keys = read.iter().map(|(key, _)| key).chain(others);
        let mut txn = Txn {
            preconditions: read.iter().map(unchanged).collect(),
            deletes: keys.map(|key| key.as_bytes().to_vec()).collect(),
            ..Txn::default()
        };
        self.rng.fill(&mut txn.request_id);
        Ok(matches!(self.replica.txn(txn).await?, TxnOutcome::Committed(_)))
    }

    pub(super) async fn raw_keys(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let entries = self.raw_entries(prefix, after, limit).await?;
        Ok(entries.into_iter().map(|(key, ..)| key).collect())
    }

    pub(super) async fn raw_entries(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<(String, bytes::Bytes, u64)>, StoreError> {
        self.replica.read_barrier().await?;
        // No key holds a byte above those of UTF-8.
        let end = [prefix.as_bytes(), &[0xff]].concat();
        // The first key after that one.
        let start = [after.as_bytes(), &[0]].concat().max(prefix.as_bytes().to_vec());
        if start >= end {
            return Ok(Vec::new());
        }
        let page = self.replica.range(&start, &end, limit, None)?;
        let key = |key: &[u8]| String::from_utf8_lossy(key).into_owned();
        let entries = page.entries.into_iter();
        Ok(entries.map(|entry| (key(&entry.key), entry.value, entry.mod_revision)).collect())
    }

    pub(super) async fn claimed(
        &self,
        prefix: &str,
        after: &str,
        limit: usize,
    ) -> Result<Vec<String>, StoreError> {
        let (prefix, after) = (format!("{SIDES}{prefix}"), format!("{SIDES}{after}"));
        let keys = self.raw_keys(&prefix, &after, limit).await?;
        Ok(keys.iter().filter_map(|key| key.strip_prefix(SIDES)).map(str::to_owned).collect())
    }

    pub(super) fn watch(&self, scope: &Scope, revision: u64) -> Result<StoreWatch, StoreError> {
        let watch = self.replica.watch(&scope.start(), &scope.end(), revision)?;
        Ok(StoreWatch::durable(watch, Arc::clone(&self.changes)))
    }
}

fn changed(current: Option<u64>) -> StoreError {
    current.map_or(StoreError::NotFound, |current| StoreError::Conflict { current })
}
