//! The state machine as openraft drives it.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::envelope;
use crate::frozen::{BadMembership, CommandV1, StateMetaV1};
use crate::state::db::{Commit, Db, View};
use crate::state::mvcc::Changes;
use crate::state::snapshot_file::Item;
use crate::state::watchers::Watchers;
use crate::state::{Mvcc, SnapshotFile, Snapshots};
use crate::type_config::{LogEntry, LogId, Reply, SnapshotMeta, StoredMembership, TypeConfig};
use crate::{NodeId, Revision};

/// Entries applied between two durable commits.
const COMMIT_ENTRIES: usize = 500;
/// Bytes changed between two durable commits.
const COMMIT_BYTES: usize = 4 * 1024 * 1024;

type Snapshot = openraft::type_config::alias::SnapshotOf<TypeConfig, SnapshotFile>;

/// How far this replica has applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Applied {
    /// Entries applied: index of the last one plus one.
    pub(crate) next_index: u64,
    pub(crate) revision: Revision,
}

/// What readers and the state machine share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) mvcc: RwLock<Mvcc>,
    pub(crate) applied: watch::Sender<Applied>,
    pub(crate) watchers: Watchers,
}

/// The state machine.
#[derive(Debug)]
pub(crate) struct StateMachine {
    shared: Arc<Shared>,
    db: Arc<Db>,
    snapshots: Arc<Snapshots>,
    applied: Option<LogId>,
    membership: StoredMembership,
    /// Changes since the last commit was started.
    pending: Changes,
    pending_entries: usize,
    commit: Option<JoinHandle<io::Result<()>>>,
}

impl StateMachine {
    /// Puts together what was opened.
    pub(crate) fn new(
        db: Arc<Db>,
        snapshots: Arc<Snapshots>,
        mvcc: Mvcc,
        meta: Option<StateMetaV1>,
    ) -> Result<(Self, Arc<Shared>), BadMembership> {
        let (applied, membership) = match meta {
            Some(meta) => (meta.applied.map(Into::into), meta.membership.try_into()?),
            None => (None, StoredMembership::default()),
        };
        let shared = Arc::new(Shared {
            applied: watch::Sender::new(progress(applied, mvcc.revision())),
            mvcc: RwLock::new(mvcc),
            watchers: Watchers::default(),
        });
        let machine = Self {
            shared: shared.clone(),
            db,
            snapshots,
            applied,
            membership,
            pending: Changes::default(),
            pending_entries: 0,
            commit: None,
        };
        Ok((machine, shared))
    }

    /// Applies one entry; makes it visible.
    fn apply_entry(&mut self, entry: LogEntry) -> io::Result<Reply> {
        let log_id = entry.log_id;
        let mut reply = Reply::default();
        let (before, revision) = {
            let mut mvcc = self.shared.mvcc.write();
            let before = mvcc.revision();
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => {
                    // Of a newer version: skipping it would make this replica differ. Stop.
                    let command: CommandV1 =
                        envelope::decode(&command.0).map_err(io::Error::other)?;
                    reply.0 = mvcc.apply(command, &mut self.pending);
                }
                EntryPayload::Membership(membership) => {
                    let new: BTreeSet<NodeId> = membership.nodes().map(|(id, _)| *id).collect();
                    let old = self.membership.nodes().map(|(id, _)| *id);
                    mvcc.remove_members(old.filter(|id| !new.contains(id)));
                    self.membership = StoredMembership::new(Some(log_id), membership);
                }
            }
            (before, mvcc.revision())
        };
        self.applied = Some(log_id);
        self.pending_entries = self.pending_entries.saturating_add(1);
        self.shared.applied.send_replace(progress(self.applied, revision));
        if revision > before {
            let mvcc = self.shared.mvcc.read();
            self.shared.watchers.wake(mvcc.changed_since(before), revision);
        }
        Ok(reply)
    }

    fn meta(&self, mvcc: &Mvcc) -> StateMetaV1 {
        StateMetaV1 {
            applied: self.applied.as_ref().map(Into::into),
            membership: (&self.membership).into(),
            revision: mvcc.revision(),
            floor: mvcc.floor(),
            next_request: mvcc.request_numbers().0,
            removed: mvcc.removed().iter().copied().collect(),
        }
    }

    /// Waits for the commit under way; then starts one with everything applied so far.
    async fn start_commit(&mut self) -> io::Result<()> {
        self.finish_commit().await?;
        if self.pending_entries == 0 && self.pending.is_empty() {
            return Ok(());
        }
        let commit = {
            let mvcc = self.shared.mvcc.read();
            Commit {
                changes: std::mem::take(&mut self.pending),
                meta: self.meta(&mvcc),
                request_floor: mvcc.request_numbers().1,
            }
        };
        self.pending_entries = 0;
        let db = self.db.clone();
        self.commit = Some(tokio::task::spawn_blocking(move || db.commit(commit)));
        Ok(())
    }

    async fn finish_commit(&mut self) -> io::Result<()> {
        match self.commit.take() {
            Some(commit) => commit.await.map_err(io::Error::other)?,
            None => Ok(()),
        }
    }

    /// Makes everything applied durable.
    pub(crate) async fn flush(&mut self) -> io::Result<()> {
        self.start_commit().await?;
        self.finish_commit().await
    }

    async fn install(&mut self, snapshot: SnapshotFile) -> io::Result<()> {
        self.finish_commit().await?;
        self.pending = Changes::default();
        self.pending_entries = 0;
        let (db, snapshots) = (self.db.clone(), self.snapshots.clone());
        let work = tokio::task::spawn_blocking(move || {
            // The snapshot first: should the state file be cut short, a start finds the
            // snapshot newer and installs it again.
            let snapshot = snapshots.keep(snapshot)?;
            let meta = snapshot.meta.clone();
            let mut mvcc = Mvcc::restore(
                meta.revision,
                meta.floor,
                meta.next_request,
                meta.removed.iter().copied(),
            );
            db.replace(&meta, |replacement| {
                snapshot.read(|item| match item {
                    Item::Row(id, row) => {
                        replacement.row(id, &row)?;
                        mvcc.restore_row(id, row);
                        Ok(())
                    }
                    Item::Request(number, request) => {
                        replacement.request(number, &request)?;
                        mvcc.restore_request(request);
                        Ok(())
                    }
                })
            })?;
            Ok::<_, io::Error>((meta, mvcc))
        });
        let (meta, mvcc) = work.await.map_err(io::Error::other)??;
        self.applied = meta.applied.map(Into::into);
        self.membership = meta.membership.try_into().map_err(io::Error::other)?;
        let revision = mvcc.revision();
        let old = std::mem::replace(&mut *self.shared.mvcc.write(), mvcc);
        self.shared.applied.send_replace(progress(self.applied, revision));
        self.shared.watchers.wake_all(revision);
        // Freeing a large state takes its time: not under the lock.
        drop(old);
        Ok(())
    }
}

fn progress(applied: Option<LogId>, revision: Revision) -> Applied {
    Applied { next_index: applied.map_or(0, |id| id.index.saturating_add(1)), revision }
}

fn to_openraft(file: SnapshotFile) -> io::Result<Snapshot> {
    let meta = file.meta.snapshot_meta().map_err(io::Error::other)?;
    Ok(Snapshot { meta, snapshot: file })
}

/// Builds one snapshot of the state at the time it was made.
pub(crate) struct Builder {
    view: Option<io::Result<(View, StateMetaV1)>>,
    snapshots: Arc<Snapshots>,
}

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let spent = || io::Error::other("a builder builds one snapshot");
        let (view, meta) = self.view.take().ok_or_else(spent)??;
        let snapshots = self.snapshots.clone();
        let work = tokio::task::spawn_blocking(move || snapshots.build(&view, meta));
        to_openraft(work.await.map_err(io::Error::other)??)
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            let reply = self.apply_entry(entry)?;
            if let Some(responder) = responder {
                responder.send(reply);
            }
            if self.pending_entries >= COMMIT_ENTRIES || self.pending.bytes >= COMMIT_BYTES {
                self.start_commit().await?;
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let view = match self.flush().await {
            Ok(()) => self.db.view().map(|view| (view, self.meta(&self.shared.mvcc.read()))),
            Err(e) => Err(e),
        };
        Builder { view: Some(view), snapshots: self.snapshots.clone() }
    }

    async fn install_snapshot(
        &mut self,
        _meta: &SnapshotMeta,
        snapshot: SnapshotFile,
    ) -> io::Result<()> {
        self.install(snapshot).await
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.snapshots.current().map(to_openraft).transpose()
    }
}
