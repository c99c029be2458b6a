//! The requests answered last, so that a repeat gets the first answer again.

use std::collections::{BTreeMap, VecDeque};

use crate::REQUESTS_REMEMBERED_MAX;
use crate::frozen::{RememberedV1, RequestV1};

/// A ring of answers, looked up by request id.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    ring: VecDeque<[u8; 16]>,
    answers: BTreeMap<[u8; 16], RememberedV1>,
    /// Number of the next request.
    next: u64,
}

impl Requests {
    /// A ring that goes on at number `next`.
    pub(crate) fn new(next: u64) -> Self {
        Self { next, ..Self::default() }
    }

    /// The first answer to a request.
    pub(crate) fn get(&self, id: &[u8; 16]) -> Option<&RememberedV1> {
        self.answers.get(id)
    }

    /// Number of the next request.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Requests with a number below this are forgotten.
    pub(crate) fn floor(&self) -> u64 {
        self.next.saturating_sub(u64::try_from(self.ring.len()).unwrap_or(u64::MAX))
    }

    /// Remembers an answer under the next number, which it returns.
    pub(crate) fn push(&mut self, id: [u8; 16], answer: RememberedV1) -> u64 {
        let number = self.next;
        self.next = number.saturating_add(1);
        self.put(id, answer);
        number
    }

    /// Puts back a request that was stored; `next` counts it already.
    pub(crate) fn restore(&mut self, request: RequestV1) {
        self.put(request.id, request.outcome);
    }

    fn put(&mut self, id: [u8; 16], answer: RememberedV1) {
        self.ring.push_back(id);
        self.answers.insert(id, answer);
        while self.ring.len() > REQUESTS_REMEMBERED_MAX {
            if let Some(oldest) = self.ring.pop_front() {
                self.answers.remove(&oldest);
            }
        }
    }
}
