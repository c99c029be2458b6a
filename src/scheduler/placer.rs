//! Choices one after the other on one view, as the scheduler makes them, without a cluster.

use k8s_openapi::api::core::v1::Pod;

use crate::scheduler::decide::choose;
use crate::scheduler::demand::{Demand, key_of};
use crate::scheduler::preempt::{Plan, preempt};
use crate::scheduler::reason::Unschedulable;
use crate::scheduler::storage::Storage;
use crate::scheduler::view::ClusterView;

/// What came of one pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// It counts as on this node now.
    Placed {
        /// The node's name.
        node: String,
    },
    /// It waits for others to leave.
    Preempting(Plan),
    /// No node takes it.
    Refused(Unschedulable),
}

/// Places pods on a view.
#[derive(Debug, Default)]
pub struct Placer {
    /// The cluster as it is with the pods placed so far.
    pub view: ClusterView,
}

impl Placer {
    /// Chooses for `pod` and counts it as placed.
    pub fn place(&mut self, pod: &Pod, seed: u64) -> Placement {
        let class = self.view.enter_class(Demand::of(pod));
        self.view.refresh_class(class);
        let (key, storage) = (key_of(pod), Storage::default());
        match choose(&self.view, class, Some(&key), &storage, seed) {
            Ok(id) => {
                let node = self.view.node_name(id).to_owned();
                self.view.assume_class(pod, &node, class);
                Placement::Placed { node }
            }
            Err(mut refusal) => match preempt(&self.view, class, &key, &storage, seed) {
                Ok(plan) => Placement::Preempting(plan),
                Err(text) => {
                    refusal.preemption = text;
                    Placement::Refused(refusal)
                }
            },
        }
    }
}
