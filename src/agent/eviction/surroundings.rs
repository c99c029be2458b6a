//! What the evictor asks of others: its node's taints, its images, and to be heard.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Node;

use crate::agent::image::Images;
use crate::client::{EventRecorder, EventType, Informer, Regarding};

/// Longest wait for a taint: without a server nothing is scheduled anyway.
const TAINT_WAIT: Duration = Duration::from_secs(3);

/// The seam between evictor and node: [`ClusterSurroundings`] in production.
#[async_trait]
pub(crate) trait Surroundings: Send + Sync + 'static {
    /// Deletes the images that no pod uses; gives the bytes that this freed.
    async fn reclaim_images(&self) -> u64;

    /// Waits until the node has `taint`, but not for long.
    async fn until_tainted(&self, taint: &'static str);

    /// Tells people what happened to the node.
    fn tell(&self, kind: EventType, reason: &'static str, message: String);
}

/// The node of a cluster.
pub(crate) struct ClusterSurroundings {
    pub(crate) node_name: String,
    pub(crate) nodes: Informer<Node>,
    pub(crate) images: Arc<Images>,
    pub(crate) events: EventRecorder,
}

impl ClusterSurroundings {
    fn is_tainted(&self, taint: &str) -> bool {
        let node = self.nodes.store.named("", &self.node_name);
        let taints = node.as_ref().and_then(|node| node.spec.as_ref()?.taints.as_ref());
        taints.is_some_and(|taints| taints.iter().any(|found| found.key == taint))
    }
}

#[async_trait]
impl Surroundings for ClusterSurroundings {
    async fn reclaim_images(&self) -> u64 {
        self.images.reclaim().await
    }

    async fn until_tainted(&self, taint: &'static str) {
        let mut changed = self.nodes.changed();
        let tainted = async {
            loop {
                changed.borrow_and_update();
                if self.is_tainted(taint) || changed.changed().await.is_err() {
                    return;
                }
            }
        };
        // The pod goes all the same: its node is short of something.
        let _ = tokio::time::timeout(TAINT_WAIT, tainted).await;
    }

    fn tell(&self, kind: EventType, reason: &'static str, message: String) {
        self.events.record(Regarding::node(&self.node_name), kind, reason, message);
    }
}
