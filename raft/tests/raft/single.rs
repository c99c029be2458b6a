//! One member.

use std::time::Duration;

use edgeorc_raft::{
    Config, OpenError, Precondition, ReadError, Replica, Role, Txn, TxnOutcome, WriteError,
};

use crate::cluster::{Cluster, eventually, member, put};

#[tokio::test]
async fn a_single_member_writes_reads_and_comes_back() {
    let mut cluster = Cluster::new(|_| {});
    let one = cluster.start(1).await;
    assert!(!one.is_initialized());
    one.bootstrap().await.unwrap();
    one.bootstrap().await.unwrap();
    assert_eq!(cluster.put(1, "a", "1").await, 1);
    assert_eq!(one.read_barrier().await.unwrap(), 1);
    assert!(one.is_initialized());
    let refused = one
        .txn(Txn {
            preconditions: vec![Precondition::Absent(b"a".to_vec())],
            puts: vec![(b"a".to_vec(), b"2".to_vec())],
            ..Txn::default()
        })
        .await
        .unwrap();
    assert!(matches!(refused, TxnOutcome::Refused { index: 0, current: Some(_) }));
    for n in 0..700 {
        cluster.put(1, &format!("k{n:03}"), "v").await;
    }
    cluster.stop(1).await;
    assert!(matches!(one.txn(put("x", "y")).await, Err(WriteError::Stopped(_))));
    assert!(matches!(one.read_barrier().await, Err(ReadError::Stopped(_))));

    let started = tokio::time::Instant::now();
    let one = cluster.start(1).await;
    assert_eq!(one.read_barrier().await.unwrap(), 701);
    let took = started.elapsed();
    assert!(took < Duration::from_millis(500), "ready after {took:?}");
    assert_eq!(one.range(b"k", b"l", 0, None).unwrap().entries.len(), 700);
    assert_eq!(cluster.put(1, "b", "1").await, 702);
    cluster.stop(1).await;
}

#[tokio::test]
async fn a_broken_state_file_is_rebuilt_from_snapshot_and_log() {
    let mut cluster = Cluster::new(|config| config.snapshot_every = 100);
    cluster.start(1).await.bootstrap().await.unwrap();
    for n in 0..450 {
        cluster.put(1, &format!("k{}", n % 40), &format!("{n}")).await;
    }
    let before = cluster[1].range(b"", b"", 0, None).unwrap();
    cluster.stop(1).await;
    let state = cluster.dirs[&1].path().join("state.redb");
    let bytes = std::fs::read(&state).unwrap();
    std::fs::write(&state, &bytes[..bytes.len() / 2]).unwrap();
    cluster.start(1).await.read_barrier().await.unwrap();
    assert_eq!(cluster[1].range(b"", b"", 0, None).unwrap(), before);
    cluster.stop(1).await;
    std::fs::write(&state, vec![7; 100_000]).unwrap();
    cluster.start(1).await.read_barrier().await.unwrap();
    assert_eq!(cluster[1].range(b"", b"", 0, None).unwrap(), before);
    cluster.stop(1).await;
}

#[tokio::test]
async fn an_idle_member_writes_nothing() {
    let mut cluster = Cluster::new(|_| {});
    cluster.start(1).await.bootstrap().await.unwrap();
    cluster.put(1, "a", "1").await;
    let modified = |dir: &std::path::Path| {
        let mut newest = std::time::UNIX_EPOCH;
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let entry = entry.unwrap();
                let meta = entry.metadata().unwrap();
                newest = newest.max(meta.modified().unwrap());
                if meta.is_dir() {
                    folders.push(entry.path());
                }
            }
        }
        newest
    };
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = modified(cluster.dirs[&1].path());
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster[1].read_barrier().await.unwrap();
    assert_eq!(modified(cluster.dirs[&1].path()), before);
    cluster.stop(1).await;
}

#[tokio::test]
async fn a_folder_opens_once_and_for_its_owner_only() {
    let mut cluster = Cluster::new(|_| {});
    cluster.start(1).await;
    let again = Replica::open(cluster.config(1), cluster.router.transport(1)).await;
    assert!(matches!(again, Err(OpenError::Foreign(_))));
    cluster.stop(1).await;
    let mut stranger = member(1);
    stranger.store_uuid = [99; 16];
    let config = Config::new(cluster.dirs[&1].path(), stranger);
    let foreign = Replica::open(config, cluster.router.transport(1)).await;
    assert!(matches!(foreign, Err(OpenError::Foreign(_))));
}

#[tokio::test]
async fn oversized_writes_are_refused_before_they_are_written() {
    let mut cluster = Cluster::new(|_| {});
    cluster.start(1).await.bootstrap().await.unwrap();
    let large = put("a", &"x".repeat(edgeorc_raft::TXN_BYTES_MAX));
    assert!(matches!(cluster[1].txn(large).await, Err(WriteError::TooLarge { .. })));
    let long_key = put(&"k".repeat(edgeorc_raft::KEY_BYTES_MAX + 1), "v");
    assert!(matches!(cluster[1].txn(long_key).await, Err(WriteError::TooLarge { .. })));
    let fits = put("a", &"x".repeat(edgeorc_raft::TXN_BYTES_MAX - 1));
    cluster[1].txn(fits).await.unwrap();
    cluster.stop(1).await;
}

#[tokio::test]
async fn without_a_group_nothing_is_written() {
    let mut cluster = Cluster::new(|_| {});
    cluster.start(1).await;
    let error = cluster[1].txn(put("a", "1")).await.unwrap_err();
    assert!(matches!(error, WriteError::NoLeader { .. }), "{error}");
    cluster.stop(1).await;
}

#[tokio::test]
async fn old_history_is_compacted_and_says_so() {
    let mut cluster = Cluster::new(|config| {
        config.history_revisions_min = 50;
        config.history_age_min = Duration::ZERO;
    });
    cluster.start(1).await.bootstrap().await.unwrap();
    let mut slow = cluster[1].watch(b"", b"", 0).unwrap();
    for n in 0..300 {
        cluster.put(1, "a", &format!("{n}")).await;
    }
    let oldest = match cluster[1].range(b"a", b"b", 0, Some(1)).unwrap_err() {
        ReadError::Compacted { asked: 1, oldest } => oldest,
        other => panic!("{other}"),
    };
    assert!((200..=250).contains(&oldest), "{oldest}");
    assert!(matches!(slow.next().await, Err(ReadError::Compacted { .. })));
    let mut fresh = cluster[1].watch(b"", b"", oldest).unwrap();
    let batch = fresh.next().await.unwrap();
    assert_eq!(batch.events.first().unwrap().revision, oldest + 1);
    assert_eq!(batch.revision, 300);
    cluster.stop(1).await;
    // What was compacted stays compacted.
    cluster.start(1).await.read_barrier().await.unwrap();
    assert!(cluster[1].range(b"a", b"b", 0, Some(oldest - 1)).is_err());
    let page = cluster[1].range(b"a", b"b", 0, Some(oldest)).unwrap();
    assert_eq!(page.entries.first().unwrap().mod_revision, oldest);
    cluster.stop(1).await;
}

#[tokio::test]
async fn a_watch_tells_progress_and_ends_with_the_replica() {
    let mut cluster = Cluster::new(|_| {});
    cluster.start(1).await.bootstrap().await.unwrap();
    cluster.put(1, "a", "1").await;
    let mut other = cluster[1].watch(b"b", b"c", 0).unwrap();
    let batch = other.next().await.unwrap();
    assert_eq!((batch.events.len(), batch.revision), (0, 1));
    assert!(matches!(cluster[1].watch(b"", b"", 9), Err(ReadError::Future { .. })));
    let waiting = tokio::spawn(async move { other.next().await });
    cluster.stop(1).await;
    assert!(matches!(waiting.await.unwrap(), Err(ReadError::Stopped(_))));
}

#[tokio::test]
async fn many_writers_share_entries_and_all_are_answered() {
    let mut cluster = Cluster::new(|_| {});
    let one = cluster.start(1).await;
    one.bootstrap().await.unwrap();
    cluster.put(1, "warm", "up").await;
    let before = one.status().borrow().applied_index;
    let writers: Vec<_> = (0..64)
        .map(|writer| {
            let one = one.clone();
            tokio::spawn(async move {
                for n in 0..20 {
                    one.txn(put(&format!("w{writer}/{n}"), "v")).await.unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    assert_eq!(one.range(b"w", b"x", 0, None).unwrap().entries.len(), 64 * 20 + 1);
    let entries = eventually("the status", || async {
        let applied = one.status().borrow().applied_index;
        (applied > before).then_some(applied - before)
    })
    .await;
    assert!(entries < 64 * 20, "{entries} entries");
    cluster.stop(1).await;
}

/// A write of the log that fails is never tried again: the member stops and says so.
#[tokio::test]
async fn a_member_whose_log_fails_stops() {
    let mut cluster = Cluster::new(|_| {});
    let one = cluster.start(1).await;
    one.bootstrap().await.unwrap();
    cluster.put(1, "a", "1").await;
    // The open segment can still be written, a new one cannot be made.
    std::fs::remove_dir_all(cluster.dirs[&1].path().join("log")).unwrap();
    let large = "x".repeat(100_000);
    let error = loop {
        if let Err(error) = one.txn(put("b", &large)).await {
            break error;
        }
    };
    assert!(matches!(error, WriteError::Unknown { .. } | WriteError::Stopped(_)), "{error}");
    let mut status = one.status();
    status.wait_for(|status| status.role == Role::Stopped).await.unwrap();
    assert!(matches!(one.txn(put("c", "1")).await, Err(WriteError::Stopped(_))));
    assert!(matches!(one.read_barrier().await, Err(ReadError::Stopped(_))));
    cluster.stop(1).await;
}

/// Others test above this store with paused time: it must not run ahead while the disk works.
#[tokio::test(start_paused = true)]
async fn paused_time_does_not_outrun_the_disk() {
    let mut cluster = Cluster::new(|_| {});
    cluster.start(1).await.bootstrap().await.unwrap();
    let started = tokio::time::Instant::now();
    for n in 0..100 {
        cluster.put(1, &format!("k{n}"), "v").await;
        cluster[1].read_barrier().await.unwrap();
    }
    let took = started.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?} of paused time");
    cluster.stop(1).await;
    cluster.start(1).await.read_barrier().await.unwrap();
    assert_eq!(cluster[1].revision(), 100);
    cluster.stop(1).await;
}
