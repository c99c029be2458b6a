//! A node that runs, and how it stops.

use std::time::Duration;

use edgeorc_raft::{Replica, Role, Status};
use edgeorc_runtime::GuestThreads;
use tokio_util::sync::CancellationToken;

use crate::net::Alpn;
use crate::roles::NodeError;
use crate::roles::leader::Leader;
use crate::roles::node::Base;
use crate::rt::TaskGroup;

/// How long a stop waits for another server to take the leadership.
const HAND_OVER_WAIT: Duration = Duration::from_secs(2);

/// A node that runs.
pub struct RunningNode {
    pub(super) client: kube::Client,
    pub(super) base: Base,
    pub(super) replica: Option<Replica>,
    /// The ingress drains on them, after the agent and its pods have ended.
    pub(super) guest_threads: Option<GuestThreads>,
    pub(super) agent_cancel: CancellationToken,
    pub(super) agent_tasks: TaskGroup,
}

impl std::fmt::Debug for RunningNode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningNode")
            .field("name", &self.base.settings.node_name)
            .finish_non_exhaustive()
    }
}

impl RunningNode {
    /// A client with all rights, in this process on a server.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.client.clone()
    }

    /// Resolves when the node can no longer go on: its store has failed.
    pub async fn ended(&mut self) {
        match &self.replica {
            Some(replica) => {
                let mut status = replica.status();
                let _ = status.wait_for(|status| status.role == Role::Stopped).await;
                tracing::error!("the store has stopped, ending the node");
            }
            None => std::future::pending().await,
        }
    }

    /// Stops everything, in the reverse order of the start.
    ///
    /// # Errors
    ///
    /// [`NodeError`] when the store had failed before.
    pub async fn stop(self) -> Result<(), NodeError> {
        let grace = self.base.settings.timing.shutdown_grace;
        let me = &self.base.settings.node_name;
        let has_failed = self
            .replica
            .as_ref()
            .is_some_and(|replica| replica.status().borrow().role == Role::Stopped);
        let peers = &self.base.peers;
        let is_alive = |name: &str| peers.is_connected(name, Alpn::Raft);
        if let Some(replica) = self.replica.as_ref().filter(|_| !has_failed) {
            let handing_over = Leader::hand_over(replica, is_alive);
            if !matches!(tokio::time::timeout(HAND_OVER_WAIT, handing_over).await, Ok(Ok(()))) {
                tracing::info!("no other server took the leadership in time");
            }
        }
        // What waits for a quorum that is gone is told so now, or the stop would wait with it.
        let cut_off = self
            .replica
            .as_ref()
            .filter(|replica| !has_failed && !can_write(&replica.status().borrow(), me, is_alive));
        if let Some(replica) = cut_off {
            tracing::info!("the other servers are gone, closing the store first");
            replica.shutdown().await;
        }
        let is_store_closed = cut_off.is_some();
        self.agent_cancel.cancel();
        self.agent_tasks.shutdown(grace).await;
        self.base.tasks.shutdown(grace).await;
        drop(self.guest_threads);
        if let Some(replica) = self.replica.as_ref().filter(|_| !is_store_closed) {
            replica.shutdown().await;
        }
        self.base.endpoint.close().await;
        // Raft and the connections have ended: nothing needs them any more.
        drop(self.base.net_threads);
        if has_failed {
            let message = "the store failed; the log says why. Free disk space or replace the disk, then start the node again";
            return Err(NodeError::Store(message.to_owned()));
        }
        Ok(())
    }
}

/// Whether a write could still succeed, by who is connected: the group itself learns of a loss only
/// when its timers run out.
fn can_write(status: &Status, me: &str, is_alive: impl Fn(&str) -> bool) -> bool {
    let is_here = |name: &str| name == me || is_alive(name);
    let name = |id| status.members.get(id).map(|member| member.name.as_str());
    let voters = status.voters.iter().filter(|id| name(id).is_some_and(is_here));
    let has_majority = voters.count() * 2 > status.voters.len();
    let leader = status.leader.as_ref().and_then(name);
    has_majority && status.role != Role::Stopped && leader.is_some_and(is_here)
}

#[cfg(test)]
mod tests {
    use edgeorc_raft::Member;

    use super::*;

    #[test]
    fn the_last_server_of_a_group_waits_for_no_write() {
        let member = |id: u64| (id, Member { id, name: id.to_string(), ..Member::default() });
        let status = |leader: Option<u64>, role| Status {
            role,
            leader,
            voters: vec![1, 2, 3],
            members: (1..=3).map(member).collect(),
            ..Status::default()
        };
        let leads = status(Some(3), Role::Leader);
        assert!(can_write(&leads, "3", |name| name == "1"));
        assert!(!can_write(&leads, "3", |_| false));
        assert!(!can_write(&status(Some(2), Role::Follower), "3", |name| name == "1"));
        assert!(can_write(&status(Some(2), Role::Follower), "3", |name| name == "2"));
        assert!(!can_write(&status(None, Role::Candidate), "3", |_| true));
        let alone = Status { voters: vec![3], ..status(Some(3), Role::Leader) };
        assert!(can_write(&alone, "3", |_| false));
    }
}
