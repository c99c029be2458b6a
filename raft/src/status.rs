//! What the replica tells about itself.

use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use openraft::metrics::RaftMetrics;
use openraft::{Instant, ServerState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::replica::Raft;
use crate::state::Shared;
use crate::type_config::TypeConfig;
use crate::{Role, Status};

/// Changes closer together than this are told as one.
const SETTLE: Duration = Duration::from_millis(20);

/// Follows Raft's metrics.
pub(crate) struct Reporter {
    pub(crate) raft: Raft,
    pub(crate) shared: Arc<Shared>,
    pub(crate) status: watch::Sender<Status>,
    /// A quorum's answer older than this is no quorum.
    pub(crate) quorum_age_max: Duration,
    /// Cancelled when Raft has ended by itself.
    pub(crate) ended: CancellationToken,
}

impl Reporter {
    pub(crate) async fn run(self, token: CancellationToken) {
        let mut metrics = self.raft.metrics();
        loop {
            let now = metrics.borrow_watched().clone();
            let is_over = now.running_state.is_err();
            let leads = now.state == ServerState::Leader;
            // A leader without others has no heartbeat to send: an idle node sleeps.
            let is_lonely = leads && now.membership_config.membership().nodes().count() == 1;
            self.raft.runtime_config().tick(!is_lonely);
            self.tell(&now);
            if is_over {
                break;
            }
            tokio::select! {
                biased;
                () = token.cancelled() => break,
                changed = metrics.changed() => if changed.is_err() { break },
                // Silence of the others is no change of metrics.
                () = tokio::time::sleep(self.quorum_age_max), if leads && !is_lonely => {}
            }
            tokio::time::sleep(SETTLE).await;
        }
        self.status.send_modify(|status| {
            status.role = Role::Stopped;
            status.has_quorum = false;
        });
        self.ended.cancel();
    }

    /// Says how things are, if that is news.
    pub(crate) fn tell(&self, metrics: &RaftMetrics<TypeConfig>) {
        let status = self.status_of(metrics);
        self.status.send_if_modified(|known| {
            let is_new = *known != status;
            if is_new {
                *known = status;
            }
            is_new
        });
    }

    fn status_of(&self, metrics: &RaftMetrics<TypeConfig>) -> Status {
        let membership = metrics.membership_config.membership();
        let voters: Vec<_> = membership.voter_ids().collect();
        let role = match (&metrics.running_state, metrics.state) {
            (Err(_), _) | (Ok(()), ServerState::Shutdown) => Role::Stopped,
            (Ok(()), ServerState::Learner) => Role::Learner,
            (Ok(()), ServerState::Follower) => Role::Follower,
            (Ok(()), ServerState::Candidate) => Role::Candidate,
            (Ok(()), ServerState::Leader) => Role::Leader,
        };
        let is_alone = voters == [metrics.id];
        let has_answer = metrics
            .last_quorum_acked
            .as_ref()
            .is_some_and(|acked| acked.elapsed() < self.quorum_age_max);
        let last = metrics.last_log_index.map_or(0, |index| index.saturating_add(1));
        let lag = metrics.replication.iter().flatten().map(|(id, matching)| {
            let matching = matching.as_ref().map_or(0, |id| id.index.saturating_add(1));
            (*id, last.saturating_sub(matching))
        });
        Status {
            role,
            term: metrics.current_term,
            leader: metrics.current_leader,
            has_quorum: role == Role::Leader && (is_alone || has_answer),
            members: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
            voters,
            applied_index: self.shared.applied.borrow().next_index.saturating_sub(1),
            lag: lag.collect(),
        }
    }
}
