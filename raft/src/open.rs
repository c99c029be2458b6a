//! Putting a replica together.

use std::sync::Arc;
use std::time::Duration;

use openraft::SnapshotPolicy;
use openraft::async_runtime::watch::WatchReceiver;
use parking_lot::Mutex;
use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::barrier::Rounds;
use crate::dir::{self, DirLock, Space};
use crate::frozen::StateMetaV1;
use crate::log::{FsDisk, LogStore, Recovered, Wal};
use crate::peer::{Gate, Incoming, Network, Peers};
use crate::proposer::Proposer;
use crate::replica::{Inner, Raft};
use crate::sleep::Sleep;
use crate::state::{Db, Mvcc, Snapshots, StateMachine};
use crate::status::Reporter;
use crate::tasks::Tasks;
use crate::{Config, OpenError, Status, Transport};

const LOG_DIR: &str = "log";
const SNAPSHOT_DIR: &str = "snapshots";
const STATE_NAME: &str = "state.redb";
/// Entries of one request to a follower; its bytes are limited too.
const SEND_ENTRIES_MAX: u64 = 512;
/// Waits before calling an unreachable member again.
const BACKOFF: &str = "50ms 100ms 200ms ..500ms";

/// What was found on disk.
struct Opened {
    lock: DirLock,
    wal: Wal,
    recovered: Recovered,
    db: Db,
    mvcc: Mvcc,
    meta: Option<StateMetaV1>,
    snapshots: Snapshots,
}

fn open_disk(config: &Config) -> Result<Opened, OpenError> {
    let dir = &config.data_dir;
    let lock = dir::claim(dir, &config.me)?;
    let folder = |name: &str| {
        let path = dir.join(name);
        FsDisk::new(&path).map(Arc::new).map_err(|source| OpenError::Io {
            action: "create",
            path,
            source,
        })
    };
    let salt = OsRng.try_next_u32().map_err(|source| OpenError::Io {
        action: "draw a random number for",
        path: dir.join(LOG_DIR),
        source: std::io::Error::other(source),
    })?;
    let (wal, recovered) = Wal::open(folder(LOG_DIR)?, salt)?;
    let snapshots = Snapshots::open(folder(SNAPSHOT_DIR)?).map_err(|source| OpenError::Io {
        action: "read",
        path: dir.join(SNAPSHOT_DIR),
        source,
    })?;
    let (db, mvcc, meta) = Db::open(&dir.join(STATE_NAME))?;
    // What was purged from the log must be in the state or in a snapshot.
    let in_state = meta.as_ref().and_then(|meta| meta.applied);
    let in_snapshot = snapshots.current().and_then(|snapshot| snapshot.meta.applied);
    let covered = in_state.max_by_index(in_snapshot);
    if let Some(purged) = recovered.checkpoint.purged
        && covered.is_none_or(|covered| covered.index < purged.index)
    {
        return Err(OpenError::Corrupt {
            path: dir.join(STATE_NAME),
            offset: 0,
            reason: format!("neither state nor snapshot reach entry {}", purged.index),
        });
    }
    Ok(Opened { lock, wal, recovered, db, mvcc, meta, snapshots })
}

trait MaxByIndex {
    fn max_by_index(self, other: Self) -> Self;
}

impl MaxByIndex for Option<crate::frozen::LogIdV1> {
    fn max_by_index(self, other: Self) -> Self {
        if self.map(|id| id.index) >= other.map(|id| id.index) { self } else { other }
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// How long a leader without a quorum is quiet: for the others' lease to end, and for two
/// election timeouts, should the first vote be split.
fn quiet_period(config: &Config) -> Duration {
    config.election_timeout.1.saturating_mul(3)
}

fn raft_config(config: &Config) -> Result<openraft::Config, OpenError> {
    let (shortest, longest) = config.election_timeout;
    let snapshot_every = config.snapshot_every.max(1);
    openraft::Config {
        cluster_name: "edgeorc".to_owned(),
        heartbeat_interval: ms(config.heartbeat),
        election_timeout_min: ms(shortest),
        election_timeout_max: ms(longest),
        max_payload_entries: SEND_ENTRIES_MAX,
        // A follower that is further behind than the log reaches gets a snapshot anyway.
        replication_lag_threshold: snapshot_every.saturating_mul(2),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_every),
        // A member that was away for a while catches up from the log.
        max_in_snapshot_log_to_keep: snapshot_every / 2,
        quorum_loss_probe_interval: Some(ms(quiet_period(config))),
        enable_pre_vote: Some(true),
        allow_log_reversion: Some(false),
        enable_leader_restore: Some(false),
        backoff: BACKOFF.to_owned(),
        ..openraft::Config::default()
    }
    .validate()
    .map_err(|e| OpenError::Raft(e.to_string()))
}

/// Opens the files, starts Raft and the tasks around it.
pub(crate) async fn open(
    config: Config,
    transport: Arc<dyn Transport>,
) -> Result<Arc<Inner>, OpenError> {
    let raft_config = Arc::new(raft_config(&config)?);
    let for_disk = config.clone();
    let opened = tokio::task::spawn_blocking(move || open_disk(&for_disk))
        .await
        .map_err(|e| OpenError::Raft(e.to_string()))??;
    let tasks = Tasks::default();
    let (db, snapshots) = (Arc::new(opened.db), Arc::new(opened.snapshots));
    let (machine, shared) =
        StateMachine::new(db.clone(), snapshots.clone(), opened.mvcc, opened.meta)
            .map_err(|e| OpenError::Raft(e.to_string()))?;
    let log = LogStore::start(opened.wal, opened.recovered, &tasks);
    let peers = Arc::new(Peers::new(transport, config.me.clone()));
    let gate = Arc::new(Gate::new(config.election_timeout.1, quiet_period(&config)));
    let network = Network::new(peers.clone(), config.election_timeout.1, gate.clone());
    let raft = Raft::new(config.me.id, raft_config, network, log.clone(), machine)
        .await
        .map_err(|e| OpenError::Raft(e.to_string()))?;
    // Its metrics are empty until it has started; an answer comes after that.
    raft.with_raft_state(|_| ()).await.map_err(|e| OpenError::Raft(e.to_string()))?;

    gate.follow(raft.metrics());

    let ended = CancellationToken::new();
    let (proposals, proposer) = Proposer::new(raft.clone(), shared.clone(), &config);
    tasks.spawn("proposer", proposer.run(tasks.token()));
    let (barriers, rounds) = Rounds::new(raft.clone(), peers.clone(), shared.clone());
    tasks.spawn("read index", rounds.run(tasks.token()));
    let (sender, status) = watch::channel(Status::default());
    let reporter = Reporter {
        raft: raft.clone(),
        shared: shared.clone(),
        status: sender,
        quorum_age_max: config.election_timeout.1,
        ended: ended.clone(),
    };
    // Whoever has opened the replica knows its group at once.
    reporter.tell(&raft.metrics().borrow_watched().clone());
    tasks.spawn("status", reporter.run(tasks.token()));

    // A single voter needs nobody's consent: do not wait for its election timeout.
    let membership = raft.server_metrics().borrow_watched().membership_config.clone();
    if membership.voter_ids().eq([config.me.id]) {
        raft.trigger().elect(false).await.map_err(|e| OpenError::Raft(e.to_string()))?;
    }
    Ok(Arc::new(Inner {
        me: config.me.clone(),
        space: Space::new(config.data_dir.clone()),
        sleep: Sleep::default(),
        heard: Mutex::default(),
        config,
        raft,
        peers,
        shared,
        snapshots,
        incoming: Arc::new(tokio::sync::Mutex::new(Incoming::default())),
        proposals,
        barriers,
        log,
        db,
        status,
        ended,
        tasks,
        lock: Mutex::new(Some(opened.lock)),
    }))
}
