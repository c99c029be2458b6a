//! Power cuts over the log.
//!
//! Goal: no acknowledged vote or entry is lost and the log opens by itself, whatever a power cut
//! (also one while it opens) leaves of the writes that were not synced. Method: random work on a
//! disk that loses power after a random number of changes, against a model of what was
//! acknowledged and of the one batch that was under way; many seeds.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use openraft::entry::RaftEntry;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::OpenError;
use crate::frozen::{LogIdV1, VoteV1};
use crate::log::index::Index;
use crate::log::sim_disk::SimDisk;
use crate::log::wal::{Op, Recovered, Wal};
use crate::type_config::{Command, LogEntry, Payload, log_id};

/// What the log should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Model {
    vote: Option<VoteV1>,
    purged: Option<LogIdV1>,
    entries: BTreeMap<u64, (u64, Vec<u8>)>,
}

impl Model {
    fn next(&self) -> u64 {
        let last = self.entries.keys().next_back().copied();
        last.max(self.purged.map(|p| p.index)).map_or(0, |last| last + 1)
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Vote(vote) => self.vote = Some(*vote),
            Op::Entry { entry, .. } => {
                let Payload::Normal(Command(bytes)) = &entry.payload else { unreachable!() };
                let value = (entry.log_id.leader_id.term, bytes.to_vec());
                self.entries.insert(entry.log_id.index, value);
            }
            Op::Truncate(from) => drop(self.entries.split_off(from)),
            Op::Purge(upto) => {
                self.purged = Some(*upto);
                self.entries = self.entries.split_off(&(upto.index + 1));
            }
            Op::Committed(_) => {}
        }
    }

    fn of(recovered: Recovered) -> Self {
        let vote = recovered.checkpoint.vote;
        let purged = recovered.checkpoint.purged;
        let index = Index::new(recovered);
        let mut entries = BTreeMap::new();
        for read in index.read(0..u64::MAX, usize::MAX) {
            let entry = read.entry().unwrap();
            let Payload::Normal(Command(bytes)) = entry.payload else { unreachable!() };
            entries.insert(entry.log_id.index, (entry.log_id.leader_id.term, bytes.to_vec()));
        }
        Self { vote, purged, entries }
    }
}

fn random_batch(rng: &mut StdRng, model: &Model) -> Vec<Op> {
    let mut after = model.clone();
    let mut ops = Vec::new();
    for _ in 0..rng.random_range(1..6) {
        let op = match rng.random_range(0..20) {
            0 => Op::Vote(VoteV1 {
                term: rng.random_range(1..100),
                voted_for: rng.random_range(1..4),
                committed: rng.random(),
            }),
            1 if !after.entries.is_empty() => {
                let first = *after.entries.keys().next().unwrap();
                Op::Truncate(rng.random_range(first..=after.next()))
            }
            2 if !after.entries.is_empty() => {
                let first = *after.entries.keys().next().unwrap();
                let index = rng.random_range(first..after.next());
                Op::Purge(LogIdV1 { term: after.entries[&index].0, index })
            }
            3 => Op::Committed(None),
            _ => {
                let size = match rng.random_range(0..30) {
                    0 => 400_000,
                    1 => 1_500_000,
                    _ => rng.random_range(0..3000),
                };
                let mut bytes = vec![0; size];
                rng.fill(&mut bytes[..]);
                let id = log_id(rng.random_range(1..9), after.next());
                let payload = Payload::Normal(Command(Bytes::from(bytes)));
                Op::Entry { ticket: 0, entry: Arc::new(LogEntry::new(id, payload)) }
            }
        };
        after.apply(&op);
        ops.push(op);
    }
    ops
}

/// Opens after a power cut; opening itself may be cut short a few times.
fn reopen(rng: &mut StdRng, mut disk: SimDisk) -> (SimDisk, Wal, Recovered) {
    for _ in 0..rng.random_range(0..3) {
        disk.set_budget(rng.random_range(0..30));
        match Wal::open(Arc::new(disk.clone()), 9) {
            Err(e @ OpenError::Corrupt { .. }) => panic!("{e}"),
            Ok(_) | Err(_) => disk = disk.power_cycle(),
        }
    }
    disk.set_budget(u64::MAX);
    let (wal, recovered) = Wal::open(Arc::new(disk.clone()), 9).unwrap();
    (disk, wal, recovered)
}

fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disk = SimDisk::new(seed);
    let mut acknowledged = Model::default();
    let mut under_way: Vec<Op> = Vec::new();
    for _ in 0..4 {
        let (opened, mut wal, recovered) = reopen(&mut rng, disk);
        disk = opened;
        let found = Model::of(recovered);
        // Everything acknowledged, then any prefix of the batch that was not.
        let mut candidates = vec![acknowledged.clone()];
        for op in &under_way {
            let mut next = candidates.last().unwrap().clone();
            next.apply(op);
            candidates.push(next);
        }
        assert!(
            candidates.contains(&found),
            "seed {seed}: found up to {} votes {:?}, acknowledged up to {} votes {:?}",
            found.next(),
            found.vote,
            acknowledged.next(),
            acknowledged.vote,
        );
        acknowledged = found;
        under_way.clear();
        disk.set_budget(rng.random_range(1..200));
        loop {
            let ops = random_batch(&mut rng, &acknowledged);
            if wal.write(&ops).is_err() {
                // Broken for good, also if the disk came back.
                assert!(wal.write(&ops).is_err());
                under_way = ops;
                break;
            }
            for op in &ops {
                acknowledged.apply(op);
            }
        }
        drop(wal);
        disk = disk.power_cycle();
    }
}

#[test]
fn a_power_cut_loses_nothing_acknowledged() {
    for seed in 0..150 {
        run(seed);
    }
}

fn filled(disk: &SimDisk, batches: u64) {
    let (mut wal, _) = Wal::open(Arc::new(disk.clone()), 9).unwrap();
    for index in 0..batches {
        let payload = Payload::Normal(Command(Bytes::from(vec![7; 100])));
        let entry = Arc::new(LogEntry::new(log_id(1, index), payload));
        wal.write(&[Op::Entry { ticket: 0, entry }]).unwrap();
    }
}

#[test]
fn a_bad_record_with_good_ones_after_it_is_corruption() {
    let disk = SimDisk::new(1);
    filled(&disk, 5);
    disk.rot("0000000000000001.log", 512 * 3 + 60);
    let error = Wal::open(Arc::new(disk), 9).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { offset: 1536, .. }), "{error}");
}

#[test]
fn a_bad_record_in_an_older_segment_is_corruption() {
    let disk = SimDisk::new(1);
    filled(&disk, 3000);
    disk.rot("0000000000000001.log", 1024 * 1024 - 512 + 60);
    let error = Wal::open(Arc::new(disk), 9).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
}

#[test]
fn a_missing_segment_is_corruption() {
    let disk = SimDisk::new(1);
    filled(&disk, 5000);
    crate::log::Disk::remove(&disk, "0000000000000001.log").unwrap();
    let error = Wal::open(Arc::new(disk), 9).unwrap_err();
    assert!(matches!(error, OpenError::Corrupt { .. }), "{error}");
}

#[test]
fn purged_segments_are_used_again() {
    let disk = SimDisk::new(1);
    let (mut wal, _) = Wal::open(Arc::new(disk.clone()), 9).unwrap();
    for index in 0..20_000_u64 {
        let payload = Payload::Normal(Command(Bytes::from(vec![7; 300])));
        let entry = Arc::new(LogEntry::new(log_id(1, index), payload));
        wal.write(&[Op::Entry { ticket: 0, entry }]).unwrap();
        if index % 3000 == 2999 {
            wal.write(&[Op::Purge(LogIdV1 { term: 1, index: index - 10 })]).unwrap();
        }
    }
    let names = crate::log::Disk::list(&disk).unwrap();
    assert!(names.len() <= 6, "{names:?}");
    let (_, recovered) = Wal::open(Arc::new(disk), 9).unwrap();
    assert_eq!(recovered.entries.back().unwrap().id.index, 19_999);
    assert_eq!(recovered.entries.front().unwrap().id.index, 17_990);
}
