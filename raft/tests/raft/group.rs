//! Three members and more, with faults.

use std::collections::BTreeMap;
use std::time::Duration;

use edgeorc_raft::{Precondition, ReadError, Role, Txn, TxnOutcome, WriteError};

use crate::cluster::{Cluster, eventually, member, put};

#[tokio::test]
async fn three_members_replicate_and_any_of_them_serves() {
    let mut cluster = Cluster::of_three(|_| {}).await;
    let follower = cluster.follower().await;
    let revision = cluster.put(follower, "a", "1").await;
    for id in 1..=3 {
        assert!(cluster[id].read_barrier().await.unwrap() >= revision);
        assert_eq!(cluster[id].get(b"a").unwrap().value.as_ref(), b"1");
    }
    let stale = Txn {
        preconditions: vec![Precondition::ModRevision(b"a".to_vec(), revision + 1)],
        puts: vec![(b"a".to_vec(), b"2".to_vec())],
        ..Txn::default()
    };
    let outcome = cluster[follower].txn(stale).await.unwrap();
    let TxnOutcome::Refused { index: 0, current: Some(current) } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(current.mod_revision, revision);
    cluster.converge(revision).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn writes_go_on_when_the_leader_is_lost() {
    let mut cluster = Cluster::of_three(|_| {}).await;
    let leader = cluster.leader(None).await;
    cluster.put(leader, "a", "1").await;
    cluster.router.unplug(leader);
    cluster.router.isolate(leader);
    let follower = *cluster.replicas.keys().find(|id| **id != leader).unwrap();
    let started = tokio::time::Instant::now();
    let revision = cluster.put(follower, "b", "2").await;
    let took = started.elapsed();
    assert!(took < Duration::from_secs(4), "writes resumed after {took:?}");
    // The old leader neither writes nor reads consistently, and says so.
    assert!(matches!(
        cluster[leader].txn(put("c", "3")).await,
        Err(WriteError::NoLeader { .. } | WriteError::Unknown { .. })
    ));
    assert!(matches!(cluster[leader].read_barrier().await, Err(ReadError::NoQuorum { .. })));
    cluster.router.heal();
    let old = cluster[leader].clone();
    cluster.router.plug(leader, old);
    cluster.converge(revision).await;
    assert_eq!(cluster[leader].get(b"b").unwrap().value.as_ref(), b"2");
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_group_comes_back_from_disk() {
    let mut cluster = Cluster::of_three(|_| {}).await;
    let mut revision = 0;
    for n in 0..50 {
        revision = cluster.put(1 + n % 3, &format!("k{n}"), "v").await;
    }
    cluster.stop_all().await;
    for id in 1..=3 {
        let status = cluster.start(id).await.status();
        assert_eq!(status.borrow().members.len(), 3, "it knows its group before anybody answers");
    }
    assert_eq!(cluster[2].read_barrier().await.unwrap(), revision);
    cluster.converge(revision).await;
    assert_eq!(cluster.put(3, "x", "y").await, revision + 1);
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_member_far_behind_gets_a_snapshot() {
    let mut cluster = Cluster::new(|config| config.snapshot_every = 100);
    cluster.start(1).await.bootstrap().await.unwrap();
    let large = "x".repeat(20_000);
    let mut revision = 0;
    for n in 0..400 {
        revision = cluster.put(1, &format!("k{}", n % 150), &large).await;
    }
    eventually("a snapshot", || async {
        std::fs::read_dir(cluster.dirs[&1].path().join("snapshots"))
            .unwrap()
            .count()
            .ge(&1)
            .then_some(())
    })
    .await;
    cluster.start(2).await;
    cluster[1].add_learner(member(2)).await.unwrap();
    cluster.converge(revision).await;
    assert_eq!(cluster[2].status().borrow().role, Role::Learner);
    // History came along: a watch from the middle goes on as on the leader.
    let batch = cluster[2].watch(b"", b"", revision - 100).unwrap().next().await.unwrap();
    let expected = cluster[1].watch(b"", b"", revision - 100).unwrap().next().await.unwrap();
    assert_eq!(batch.events[0], expected.events[0]);
    // It comes back from its own disk, and goes on.
    cluster.stop(2).await;
    let revision = cluster.put(1, "after", "v").await;
    cluster.start(2).await;
    cluster.converge(revision).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_member_that_was_away_catches_up_past_a_purge() {
    let mut cluster = Cluster::of_three(|config| config.snapshot_every = 50).await;
    let leader = cluster.leader(None).await;
    let away = *cluster.replicas.keys().find(|id| **id != leader).unwrap();
    cluster.put(leader, "a", "1").await;
    cluster.stop(away).await;
    let mut revision = 0;
    for n in 0..300 {
        revision = cluster.put(leader, &format!("k{}", n % 20), &format!("{n}")).await;
    }
    cluster.start(away).await;
    cluster.converge(revision).await;
    cluster.stop_all().await;
}

/// Every change is delivered once and in order, on a follower, while leaders come and go.
#[tokio::test]
async fn a_watch_sees_everything_once_across_leader_changes() {
    let mut cluster = Cluster::of_three(|_| {}).await;
    let follower = cluster.follower().await;
    let mut watch = cluster[follower].watch(b"k", b"l", 0).unwrap();
    let watcher = tokio::spawn(async move {
        let mut seen: Vec<(u64, Vec<u8>)> = Vec::new();
        let mut told = 0;
        while seen.last().is_none_or(|(_, key)| key != b"kend") {
            let batch = watch.next().await.unwrap();
            assert!(batch.revision >= told);
            assert!(batch.events.iter().all(|e| e.revision > told && e.revision <= batch.revision));
            told = batch.revision;
            seen.extend(batch.events.iter().map(|e| (e.revision, e.key.to_vec())));
        }
        seen
    });
    let mut written = BTreeMap::new();
    for round in 0..3 {
        for n in 0..20 {
            let key = format!("k{round}-{n}");
            let revision = cluster.put(1 + n % 3, &key, "v").await;
            written.insert(revision, key.into_bytes());
        }
        let leader = cluster.leader(None).await;
        let next = *cluster.replicas.keys().find(|id| **id != leader).unwrap();
        cluster[follower].transfer_leader(next).await.unwrap();
    }
    written.insert(cluster.put(1, "kend", "v").await, b"kend".to_vec());
    let seen = tokio::time::timeout(Duration::from_secs(20), watcher).await.unwrap().unwrap();
    assert_eq!(seen, written.into_iter().collect::<Vec<_>>());
    cluster.stop_all().await;
}

#[tokio::test]
async fn leadership_moves_on_request() {
    let mut cluster = Cluster::of_three(|_| {}).await;
    let leader = cluster.leader(None).await;
    let next = 1 + leader % 3;
    cluster[next].transfer_leader(next).await.unwrap();
    assert_eq!(cluster.leader(Some(leader)).await, next);
    let error = cluster[leader].transfer_leader(9).await.unwrap_err();
    assert!(matches!(error, WriteError::Refused(_)), "{error}");
    cluster.stop_all().await;
}

#[tokio::test]
async fn membership_has_rules() {
    let mut cluster = Cluster::of_three(|_| {}).await;
    let follower = cluster.follower().await;
    let door = cluster[follower].clone();
    let first = door.allocate_id().await.unwrap();
    let second = door.allocate_id().await.unwrap();
    assert!(first > 3 && second > first);
    // Known id, another store: a wiped or cloned disk.
    let mut wiped = member(2);
    wiped.store_uuid = [77; 16];
    assert!(matches!(door.add_learner(wiped.clone()).await, Err(WriteError::Refused(_))));
    assert!(matches!(door.update_member(wiped).await, Err(WriteError::Refused(_))));
    // Another id, known store: a copy of a data folder.
    let mut copy = member(2);
    copy.id = first;
    assert!(matches!(door.add_learner(copy).await, Err(WriteError::Refused(_))));
    assert!(matches!(door.set_voters(vec![1, first]).await, Err(WriteError::Refused(_))));
    assert!(matches!(door.set_voters(vec![]).await, Err(WriteError::Refused(_))));
    // A member may move.
    let mut moved = member(3);
    moved.address = "elsewhere:1".to_owned();
    door.update_member(moved.clone()).await.unwrap();
    door.add_learner(moved.clone()).await.unwrap();
    eventually("the new address", || async {
        (door.status().borrow().members[&3] == moved).then_some(())
    })
    .await;
    // Who was removed does not come back under its id.
    let leader = cluster.leader(None).await;
    let gone = (1..=3).find(|id| *id != leader && *id != follower).unwrap();
    door.remove(gone).await.unwrap();
    door.remove(gone).await.unwrap();
    assert!(matches!(door.add_learner(member(gone)).await, Err(WriteError::Refused(_))));
    let revision = cluster.put(follower, "a", "1").await;
    eventually("the others only", || async {
        let status = door.status().borrow().clone();
        (status.voters.len() == 2 && !status.members.contains_key(&gone)).then_some(())
    })
    .await;
    // The removed one asks in vain.
    assert!(matches!(cluster[gone].txn(put("b", "1")).await, Err(WriteError::NoLeader { .. })));
    cluster.stop(gone).await;
    cluster.converge(revision).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_removed_leader_hands_over() {
    let mut cluster = Cluster::of_three(|_| {}).await;
    let leader = cluster.leader(None).await;
    cluster[leader].remove(leader).await.unwrap();
    let next = cluster.leader(Some(leader)).await;
    cluster.stop(leader).await;
    cluster.put(next, "a", "1").await;
    cluster.stop_all().await;
}

/// The leader hears nobody, the others hear it: its heartbeats must not keep them from electing.
#[tokio::test]
async fn a_leader_that_hears_nobody_is_replaced() {
    let mut cluster = Cluster::of_three(|_| {}).await;
    let leader = cluster.leader(None).await;
    for other in (1..=3).filter(|id| *id != leader) {
        cluster.router.cut(other, leader);
    }
    let next = cluster.leader(Some(leader)).await;
    cluster.put(next, "a", "1").await;
    cluster.router.heal();
    let revision = cluster.put(leader, "b", "1").await;
    cluster.converge(revision).await;
    cluster.stop_all().await;
}

#[tokio::test]
async fn a_slow_network_is_no_reason_to_change_the_leader() {
    let mut cluster = Cluster::of_three(|_| {}).await;
    let leader = cluster.leader(None).await;
    let term = cluster[leader].status().borrow().term;
    cluster.router.set_delay(Duration::from_millis(40));
    let mut revision = 0;
    for n in 0..20 {
        revision = cluster.put(1 + n % 3, &format!("k{n}"), "v").await;
    }
    cluster.router.set_delay(Duration::ZERO);
    cluster.converge(revision).await;
    assert_eq!(cluster[leader].status().borrow().term, term);
    cluster.stop_all().await;
}

/// A lost answer is retried with the same request id: applied once, answered as applied.
#[tokio::test]
async fn a_lost_answer_does_not_write_twice() {
    let mut cluster = Cluster::of_three(|_| {}).await;
    let leader = cluster.leader(None).await;
    let follower = cluster.follower().await;
    let revision = cluster.put(follower, "counter", "0").await;
    // Requests reach the leader, answers do not come back.
    cluster.router.cut(leader, follower);
    let door = cluster[follower].clone();
    let once = Txn {
        preconditions: vec![Precondition::ModRevision(b"counter".to_vec(), revision)],
        puts: vec![(b"counter".to_vec(), b"1".to_vec())],
        ..Txn::default()
    };
    let write = tokio::spawn(async move { door.txn(once).await });
    let watched = cluster[leader].clone();
    eventually("the write", || async { (watched.revision() > revision).then_some(()) }).await;
    cluster.router.heal();
    assert_eq!(write.await.unwrap().unwrap(), TxnOutcome::Committed(revision + 1));
    cluster.converge(revision + 1).await;
    assert_eq!(cluster[leader].revision(), revision + 1);
    cluster.stop_all().await;
}
