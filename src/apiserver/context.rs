//! What every handler needs.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::apiserver::by_node::ByNode;
use crate::apiserver::compiled::{self, CompiledConfig};
use crate::apiserver::image_policy::ImageVerifier;
use crate::apiserver::registry::{
    self, CollectError as RegistryCollectError, Collected as RegistryCollected, Registry,
};
use crate::apiserver::renewals::Relay;
use crate::apiserver::service_account::Signers;
use crate::apiserver::stats::Stats;
use crate::apiserver::{forward, router, streaming};
use crate::config::ServiceCidrs;
use crate::net::Peers;
use crate::rt::{DiskMarks, Rng, TaskGroup, WallClock};
use crate::store::Store;
use crate::telemetry::Metrics;

/// What the API server is made of.
#[derive(Debug, Clone)]
pub struct ApiServerConfig {
    /// Name of this node.
    pub node_name: String,
    /// The objects.
    pub store: Store,
    /// Connections to other nodes; `None` when this server stands alone (tests).
    pub peers: Option<Peers>,
    /// The agent in this process, for logs of its own pods.
    pub node_api: Option<axum::Router>,
    /// For time stamps.
    pub clock: WallClock,
    /// For uids, generated names and time-outs.
    pub rng: Rng,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    /// What Services have their addresses of.
    pub service_cidrs: ServiceCidrs,
    /// Where the registry keeps its blobs.
    pub blob_dir: PathBuf,
    /// Pause between bookmarks of a watch. Default 60 s.
    pub bookmark_interval: Duration,
    /// Ends open watches and followed logs when this server stops.
    pub cancel: CancellationToken,
}

/// The API server: a router over the store.
#[derive(Debug, Clone)]
pub struct ApiServer {
    context: Context,
}

/// Shared by all handlers. Cheap to clone.
pub(super) type Context = Arc<ContextInner>;

/// See [`ApiServerConfig`].
#[derive(Debug)]
pub(super) struct ContextInner {
    pub(super) node_name: String,
    pub(super) store: Store,
    pub(super) clock: WallClock,
    pub(super) rng: Rng,
    pub(super) service_cidrs: ServiceCidrs,
    pub(super) metrics: Metrics,
    pub(super) forward: forward::Forward,
    /// Where heartbeats go while another server leads.
    pub(super) relay: Relay,
    pub(super) registry: Registry,
    pub(super) stats: Stats,
    pub(super) signers: Signers,
    /// Changes of pods and Nodes for the watches of agents.
    pub(super) by_node: ByNode,
    /// Set once the node it belongs to is there.
    pub(super) image_verifier: OnceLock<Arc<dyn ImageVerifier>>,
    pub(super) bookmark_interval: Duration,
    pub(super) cancel: CancellationToken,
    /// exec, attach, port-forward: they outlive their requests.
    pub(super) sessions: TaskGroup,
    pub(super) session_places: Arc<Semaphore>,
    /// Whose write may be charged to quotas now.
    pub(super) quota_turn: Semaphore,
}

impl ApiServer {
    /// Wires the handlers; serves nothing yet.
    #[must_use]
    pub fn new(config: ApiServerConfig) -> Self {
        let stats = Stats::register(&config.metrics);
        config.store.register(&config.metrics);
        let context = ContextInner {
            forward: forward::Forward::new(&config),
            relay: Relay::default(),
            registry: Registry::new(config.blob_dir),
            stats,
            signers: Signers::default(),
            by_node: ByNode::default(),
            image_verifier: OnceLock::new(),
            node_name: config.node_name,
            store: config.store,
            clock: config.clock,
            rng: config.rng,
            metrics: config.metrics,
            service_cidrs: config.service_cidrs,
            bookmark_interval: config.bookmark_interval,
            sessions: TaskGroup::new(&config.cancel),
            session_places: Arc::new(Semaphore::new(streaming::SESSIONS_MAX)),
            quota_turn: Semaphore::new(1),
            cancel: config.cancel,
        };
        Self { context: Arc::new(context) }
    }

    /// Says who looks for signatures of images; until then, namespaces with an image policy take no
    /// new pods. The first one stays.
    pub fn set_image_verifier(&self, verifier: Arc<dyn ImageVerifier>) {
        if self.context.image_verifier.set(verifier).is_err() {
            tracing::debug!("images are verified already");
        }
    }

    /// Deletes what nothing names from the registry until `cancel`: every hour, and as the disk fills.
    pub async fn collect_garbage(&self, marks: DiskMarks, cancel: CancellationToken) {
        registry::collect_garbage(&self.context, marks, cancel).await;
    }

    /// Does that once, with so many bytes to free.
    ///
    /// # Errors
    ///
    /// [`RegistryCollectError`].
    pub async fn collect_garbage_once(
        &self,
        wanted_bytes: u64,
    ) -> Result<RegistryCollected, RegistryCollectError> {
        registry::collect_once(&self.context, wanted_bytes).await
    }

    /// The paths of compiled code, to be merged with [`Self::router`].
    pub fn compiled(&self, config: CompiledConfig) -> axum::Router {
        compiled::router(Arc::clone(&self.context), config)
    }

    /// All other paths. Who asks is the [`crate::api::user::UserInfo`] extension of the request.
    pub fn router(&self) -> axum::Router {
        router::build(Arc::clone(&self.context))
    }
}
