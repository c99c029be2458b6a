//! Where addresses and ports are taken from.

use std::collections::BTreeSet;

use crate::config::ServiceCidrs;
use crate::rt::Rng;
use crate::store::{Store, StoreError};

/// Tries at random before it is looked up what is free: in a range that is not nearly full, the
/// first one succeeds.
const BLIND_TRIES: usize = 4;
/// Keys read at once.
const PAGE: usize = 1000;
/// Keys read in all: more than there are ports and addresses in use in any cluster.
const KEYS_MAX: usize = 200_000;
/// Where the store keeps what is unique.
const KINDS: [&str; 3] = ["clusterip/", "tcp-nodeport/", "udp-nodeport/"];

/// Ranges, chance, and what is known to be taken.
#[derive(Debug)]
pub(in crate::apiserver) struct Source<'a> {
    pub(super) rng: &'a Rng,
    pub(super) cidrs: &'a ServiceCidrs,
    /// Keys that another Service holds.
    pub(super) taken: BTreeSet<String>,
    refusals: usize,
}

impl<'a> Source<'a> {
    /// Nothing is known to be taken yet.
    pub(in crate::apiserver) fn new(rng: &'a Rng, cidrs: &'a ServiceCidrs) -> Self {
        Self { rng, cidrs, taken: BTreeSet::new(), refusals: 0 }
    }

    /// A choice was refused since `key` is taken. After a few of them, looks up all that are.
    pub(in crate::apiserver) async fn learn(
        &mut self,
        key: String,
        store: &Store,
    ) -> Result<(), StoreError> {
        self.taken.insert(key);
        self.refusals += 1;
        if self.refusals != BLIND_TRIES {
            return Ok(());
        }
        for kind in KINDS {
            let mut after = String::new();
            while self.taken.len() < KEYS_MAX {
                let page = store.claimed(kind, &after, PAGE).await?;
                let Some(last) = page.last() else { break };
                after.clone_from(last);
                self.taken.extend(page);
            }
        }
        Ok(())
    }

    /// A free number of `range` at random; those `below` are used once that is full.
    pub(super) fn pick(
        &self,
        range: std::ops::Range<u64>,
        below: std::ops::Range<u64>,
        is_free: impl Fn(u64) -> bool,
    ) -> Option<u64> {
        for range in [range, below] {
            let count = range.end.saturating_sub(range.start);
            if count == 0 {
                continue;
            }
            let begin = range.start + self.rng.below(count);
            let found =
                (begin..range.end).chain(range.start..begin).find(|number| is_free(*number));
            if found.is_some() {
                return found;
            }
        }
        None
    }
}
