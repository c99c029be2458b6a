//! The state in memory, against small scripts.

use bytes::Bytes;
use proptest::prelude::*;

use crate::frozen::{CommandV1, PreconditionV1, TxnV1};
use crate::state::Mvcc;
use crate::state::mvcc::Changes;
use crate::{REQUESTS_REMEMBERED_MAX, ReadError, Revision, TxnOutcome};

fn bytes(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

struct Script {
    mvcc: Mvcc,
    changes: Changes,
    requests: u64,
}

impl Script {
    fn new() -> Self {
        Self { mvcc: Mvcc::default(), changes: Changes::default(), requests: 0 }
    }

    fn run(&mut self, id: Option<u64>, mut txn: TxnV1) -> TxnOutcome {
        self.requests += 1;
        let id = id.unwrap_or(self.requests);
        txn.request_id[..8].copy_from_slice(&id.to_le_bytes());
        let command = CommandV1 { compact: 0, txns: vec![txn] };
        self.mvcc.apply(command, &mut self.changes).remove(0)
    }

    fn put(&mut self, key: &str, value: &str) -> TxnOutcome {
        self.run(None, txn(vec![], &[(key, value)], &[]))
    }

    fn delete(&mut self, key: &str) -> TxnOutcome {
        self.run(None, txn(vec![], &[], &[key]))
    }

    fn compact(&mut self, revision: Revision) {
        self.mvcc.apply(CommandV1 { compact: revision, txns: vec![] }, &mut self.changes);
    }

    fn keys(&self, at: Option<Revision>) -> Vec<String> {
        let page = self.mvcc.range(b"", b"", 0, at).unwrap();
        page.entries.iter().map(|e| String::from_utf8(e.key.to_vec()).unwrap()).collect()
    }
}

fn txn(preconditions: Vec<PreconditionV1>, puts: &[(&str, &str)], deletes: &[&str]) -> TxnV1 {
    TxnV1 {
        request_id: [0; 16],
        preconditions,
        puts: puts.iter().map(|(key, value)| (bytes(key), bytes(value))).collect(),
        deletes: deletes.iter().map(|key| bytes(key)).collect(),
    }
}

#[test]
fn a_transaction_happens_at_one_revision() {
    let mut script = Script::new();
    assert_eq!(script.put("b", "1"), TxnOutcome::Committed(1));
    let outcome = script.run(None, txn(vec![], &[("a", "2"), ("c", "3")], &["b", "absent"]));
    assert_eq!(outcome, TxnOutcome::Committed(2));
    assert_eq!(script.keys(None), ["a", "c"]);
    assert_eq!(script.keys(Some(1)), ["b"]);
    let (events, upto) = script.mvcc.events(b"", b"", 0, 100).unwrap();
    assert_eq!(upto, 2);
    let seen: Vec<_> = events.iter().map(|e| (e.revision, e.key.clone())).collect();
    assert_eq!(seen, [(1, bytes("b")), (2, bytes("a")), (2, bytes("b")), (2, bytes("c"))]);
    assert_eq!(events[2].entry, None);
    assert_eq!(events[2].previous.as_ref().unwrap().value, bytes("1"));
}

#[test]
fn a_failed_precondition_changes_nothing_and_tells_what_is_there() {
    let mut script = Script::new();
    script.put("a", "1");
    let absent = vec![PreconditionV1::Absent(bytes("a"))];
    let TxnOutcome::Refused { index: 0, current: Some(current) } =
        script.run(None, txn(absent, &[("a", "2")], &[]))
    else {
        panic!("not refused");
    };
    assert_eq!((current.value, current.mod_revision), (bytes("1"), 1));
    let stale =
        vec![PreconditionV1::Present(bytes("a")), PreconditionV1::ModRevision(bytes("a"), 7)];
    let refused = script.run(None, txn(stale, &[("a", "2")], &[]));
    assert!(matches!(refused, TxnOutcome::Refused { index: 1, .. }));
    assert_eq!(script.mvcc.revision(), 1);
    let fresh = vec![PreconditionV1::ModRevision(bytes("a"), 1)];
    assert_eq!(script.run(None, txn(fresh, &[("a", "2")], &[])), TxnOutcome::Committed(2));
    let entry = script.mvcc.get(b"a").unwrap();
    assert_eq!((entry.create_revision, entry.mod_revision), (1, 2));
}

#[test]
fn a_repeated_request_gets_the_first_answer() {
    let mut script = Script::new();
    let put = txn(vec![PreconditionV1::Absent(bytes("a"))], &[("a", "1")], &[]);
    assert_eq!(script.run(Some(77), put.clone()), TxnOutcome::Committed(1));
    assert_eq!(script.run(Some(77), put.clone()), TxnOutcome::Committed(1));
    let refused = script.run(Some(78), put.clone());
    script.put("a", "2");
    script.delete("a");
    assert_eq!(script.run(Some(78), put.clone()), refused);
    assert_eq!(script.mvcc.revision(), 3);
    for _ in 0..REQUESTS_REMEMBERED_MAX {
        script.delete("absent");
    }
    assert_eq!(script.mvcc.revision(), 3);
    assert_eq!(script.run(Some(78), put), TxnOutcome::Committed(4));
}

#[test]
fn a_range_is_paged_at_one_revision() {
    let mut script = Script::new();
    for key in ["a", "b", "c", "d"] {
        script.put(key, "1");
    }
    let page = script.mvcc.range(b"a", b"d", 2, None).unwrap();
    assert_eq!((page.entries.len(), page.remaining, page.revision), (2, 1, 4));
    let uncounted = script.mvcc.page((b"a", b""), 1, None, 1).unwrap();
    assert_eq!((uncounted.entries.len(), uncounted.remaining), (1, 1));
    script.put("bb", "1");
    let rest = script.mvcc.range(b"b\0", b"d", 2, Some(4)).unwrap();
    assert_eq!(rest.entries.len(), 1);
    assert_eq!(rest.entries[0].key, bytes("c"));
    assert!(script.mvcc.range(b"d", b"a", 0, None).unwrap().entries.is_empty());
    assert!(matches!(
        script.mvcc.range(b"", b"", 0, Some(9)),
        Err(ReadError::Future { asked: 9, current: 5 })
    ));
}

#[test]
fn compaction_keeps_what_the_floor_shows() {
    let mut script = Script::new();
    script.put("a", "1");
    script.put("a", "2");
    script.put("b", "1");
    script.delete("b");
    script.put("c", "1");
    script.put("a", "3");
    script.compact(4);
    assert_eq!(script.keys(Some(4)), ["a"]);
    let page = script.mvcc.range(b"", b"", 0, Some(4)).unwrap();
    assert_eq!(page.entries[0].value, bytes("2"));
    assert!(matches!(
        script.mvcc.range(b"", b"", 0, Some(3)),
        Err(ReadError::Compacted { asked: 3, oldest: 4 })
    ));
    assert!(script.mvcc.events(b"", b"", 3, 10).is_err());
    assert_eq!(script.mvcc.events(b"", b"", 4, 10).unwrap().0.len(), 2);
    assert_eq!(script.changes.forgotten, [(1, 0), (3, 0), (4, 0)]);
}

#[test]
fn only_what_the_history_keeps_beyond_the_live_versions_counts_as_history() {
    let mut script = Script::new();
    script.put("a", "1234");
    script.put("b", "12");
    assert_eq!(script.mvcc.history_bytes(), 0, "live objects are no history");
    script.put("a", "56");
    assert_eq!(script.mvcc.history_bytes(), 5, "the replaced version: key and value");
    script.delete("b");
    assert_eq!(script.mvcc.history_bytes(), 9, "and the deleted one with its tombstone");
    script.put("b", "9");
    assert_eq!(script.mvcc.history_bytes(), 9);
    script.compact(4);
    assert_eq!(script.mvcc.history_bytes(), 0);
}

proptest! {
    /// Rows and counters put back give the same answers at every kept revision.
    #[test]
    fn a_restored_state_answers_the_same(
        script_ in prop::collection::vec((0_u8..6, 0_u8..3, any::<bool>()), 1..60),
        floor in 0_u64..60,
    ) {
        let mut script = Script::new();
        for (key, value, is_put) in &script_ {
            let key = format!("k{key}");
            if *is_put {
                script.put(&key, &format!("{value}"));
            } else {
                script.delete(&key);
            }
        }
        script.compact(floor.min(script.mvcc.revision()));
        let mvcc = &script.mvcc;
        let next = mvcc.request_numbers().0;
        let mut restored = Mvcc::restore(mvcc.revision(), mvcc.floor(), next, []);
        for (id, row) in &script.changes.rows {
            if !script.changes.forgotten.contains(id) {
                restored.restore_row(*id, row.clone());
            }
        }
        prop_assert_eq!(restored.history_bytes(), mvcc.history_bytes());
        for at in mvcc.floor()..=mvcc.revision() {
            prop_assert_eq!(
                restored.range(b"", b"", 0, Some(at)).unwrap(),
                mvcc.range(b"", b"", 0, Some(at)).unwrap()
            );
            prop_assert_eq!(
                restored.events(b"k1", b"k4", at, 1000).unwrap(),
                mvcc.events(b"k1", b"k4", at, 1000).unwrap()
            );
        }
    }
}
