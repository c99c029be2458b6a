//! What runs exactly while this server leads: controllers, scheduler, and the group's membership.

use std::sync::Arc;
use std::time::Duration;

use edgeorc_raft::{NodeId, Replica, Role, Status};
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::apiserver;
use crate::client::{Informers, Interned};
use crate::config::{PodCidrs, ServiceCidrs};
use crate::roles::plugins::{self, Keeper};
use crate::roles::roll::Roll;
use crate::roles::{NodeError, api_service};
use crate::rt::{Rng, TaskGroup, WallClock};
use crate::store::{Store, plan_voters};
use crate::{controllers, scheduler};

/// How long the tasks of a lost leadership get to end.
const GRACE: Duration = Duration::from_secs(5);
/// Pause between two tries to write what every cluster has.
const BOOTSTRAP_RETRY: Duration = Duration::from_millis(200);
/// Pause between two looks at who should vote.
const MEMBERSHIP_LOOK: Duration = Duration::from_millis(500);

/// Entries that a server may lag behind and still be handed the leadership.
const HAND_OVER_LAG_MAX: u64 = 64;

/// What the leader's work needs.
#[derive(Clone)]
pub(super) struct Leader {
    pub(super) replica: Replica,
    pub(super) store: Store,
    /// As the controllers and the scheduler.
    pub(super) clients: (kube::Client, kube::Client),
    /// What the agent of this process holds as well.
    pub(super) pods: Interned<Pod>,
    pub(super) clock: WallClock,
    pub(super) rng: Rng,
    pub(super) node_name: String,
    pub(super) ca_pem: String,
    pub(super) pod_cidrs: PodCidrs,
    pub(super) service_cidrs: ServiceCidrs,
    /// What plugins of the scheduler need.
    pub(super) plugins: plugins::Tools,
    /// First and longest wait before what failed runs again.
    pub(super) restart_backoff: (Duration, Duration),
}

impl Leader {
    /// Starts the work when this server begins to lead, stops it when it no longer does.
    pub(super) async fn run(self, tasks: TaskGroup, cancel: CancellationToken) {
        let mut status = self.replica.status();
        let mut term = 0;
        let mut work: Option<TaskGroup> = None;
        loop {
            let (is_leader, now) = {
                let status = status.borrow_and_update();
                (status.role == Role::Leader, status.term)
            };
            if let Some(old) = work.take_if(|_| !is_leader || now != term) {
                tracing::info!(raft.term = term, "no longer leading");
                old.shutdown(GRACE).await;
            }
            if is_leader && work.is_none() && !cancel.is_cancelled() {
                tracing::info!(raft.term = now, "leading");
                term = now;
                let group = tasks.child();
                self.start(&group);
                work = Some(group);
            }
            if !matches!(cancel.run_until_cancelled(status.changed()).await, Some(Ok(()))) {
                if let Some(work) = work {
                    work.shutdown(GRACE).await;
                }
                return;
            }
        }
    }

    fn start(&self, group: &TaskGroup) {
        let leader = self.clone();
        group.spawn_until_cancelled("bootstrap", async move { leader.bootstrap().await });
        let leader = self.clone();
        group.spawn_until_cancelled("membership", async move { leader.keep_voters().await });
        let api_service =
            api_service::keep(self.clients.0.clone(), self.replica.clone(), self.service_cidrs);
        group.spawn_until_cancelled("api-service", api_service);
        let informers = Informers::start_among(&self.clients.0, self.pods.clone(), group);
        let roll = Roll::new(self.clients.0.clone(), self.clock.clone());
        let nodes = informers.nodes.clone();
        group.spawn("node-roll", |cancel| roll.follow(nodes, cancel));
        let context = controllers::Context {
            client: self.clients.0.clone(),
            informers: informers.clone(),
            clock: self.clock.clone(),
            rng: self.rng.clone(),
            node_name: self.node_name.clone(),
            predecessor: self.predecessor(),
            last_heartbeat: self.last_heartbeat(),
            root_ca: self.ca_pem.as_str().into(),
            settings: controllers::Settings {
                pod_cidrs: self.pod_cidrs,
                job_backoff_min: self.restart_backoff.0,
                job_backoff_max: self.restart_backoff.1,
                ..controllers::Settings::default()
            },
        };
        group.spawn("controllers", |cancel| controllers::run(context, cancel));
        let (told, profiles) = watch::channel(scheduler::Profiles::new());
        let keeper = Keeper::new(self.clients.1.clone(), told, self.plugins.clone());
        group.spawn("scheduler-plugins", |cancel| keeper.run(cancel));
        let context = scheduler::Context {
            client: self.clients.1.clone(),
            informers,
            clock: self.clock.clone(),
            rng: self.rng.clone(),
            profiles,
        };
        group.spawn("scheduler", |cancel| scheduler::run(context, cancel));
    }

    fn last_heartbeat(&self) -> controllers::LastHeartbeat {
        let store = self.store.clone();
        Arc::new(move |node| store.last_heartbeat(node))
    }

    /// The node of the leader before this one, and when that was last heard.
    fn predecessor(&self) -> Option<(String, Instant)> {
        let (id, at) = self.replica.take_leader_heard()?;
        let status = self.replica.status();
        let name = status.borrow().members.get(&id)?.name.clone();
        Some((name, at))
    }

    /// Writes what every cluster has, until that works.
    pub(super) async fn bootstrap(&self) {
        loop {
            match apiserver::bootstrap(&self.store, &self.clock, &self.rng, &self.ca_pem).await {
                Ok(()) => return,
                Err(err) => tracing::debug!(%err, "the cluster's own objects are not written yet"),
            }
            tokio::time::sleep(BOOTSTRAP_RETRY).await;
        }
    }

    /// Gives votes to the servers that should have one.
    async fn keep_voters(&self) {
        loop {
            let wanted = plan_voters(&self.replica.status().borrow());
            if let Some(voters) = wanted {
                match self.replica.set_voters(voters.clone()).await {
                    Ok(()) => tracing::info!(raft.voters = ?voters, "voters changed"),
                    Err(err) => tracing::warn!(%err, "the voters could not be changed"),
                }
            }
            tokio::time::sleep(MEMBERSHIP_LOOK).await;
        }
    }

    /// Hands the leadership to another voter, so that a stop does not cost an election. `is_alive`
    /// tells whether a server of that name is connected.
    pub(super) async fn hand_over(
        replica: &Replica,
        is_alive: impl Fn(&str) -> bool,
    ) -> Result<(), NodeError> {
        let successors = successors(&replica.status().borrow(), is_alive);
        let mut outcome = Ok(());
        for other in successors {
            outcome = replica.transfer_leader(other).await.map_err(NodeError::failed);
            if outcome.is_ok() {
                break;
            }
        }
        outcome
    }
}

/// Who can lead next, the best first; nobody unless this replica leads. A server that is away would
/// be waited for in vain, and one that lags would have to catch up before it can be elected.
fn successors(status: &Status, is_alive: impl Fn(&str) -> bool) -> Vec<NodeId> {
    if status.role != Role::Leader || !status.has_quorum {
        return Vec::new();
    }
    let lag = |id: &NodeId| status.lag.get(id).copied();
    let others = status.voters.iter().copied().filter(|id| Some(*id) != status.leader);
    let mut able: Vec<(u64, NodeId)> = others
        .filter(|id| status.members.get(id).is_some_and(|member| is_alive(&member.name)))
        .filter_map(|id| Some((lag(&id).filter(|lag| *lag <= HAND_OVER_LAG_MAX)?, id)))
        .collect();
    able.sort_unstable();
    able.into_iter().map(|(_, id)| id).collect()
}

#[cfg(test)]
mod tests {
    use edgeorc_raft::Member;

    use super::*;

    #[test]
    fn leadership_goes_to_a_voter_that_is_there_and_has_the_log() {
        let member = |id: NodeId| (id, Member { id, name: id.to_string(), ..Member::default() });
        let mut status = Status {
            role: Role::Leader,
            has_quorum: true,
            leader: Some(2),
            voters: vec![1, 2, 3, 4, 5],
            members: (1..=6).map(member).collect(),
            lag: [(1, 0), (3, 4), (4, 1_000_000), (5, 0), (6, 0)].into(),
            ..Status::default()
        };
        // 1 is dead though it has the log, 4 lags, 6 has no vote.
        assert_eq!(successors(&status, |name| name != "1"), [5, 3]);
        assert!(successors(&status, |_| false).is_empty());
        status.has_quorum = false;
        assert!(successors(&status, |_| true).is_empty());
        status.role = Role::Follower;
        assert!(successors(&status, |_| true).is_empty());
    }
}
