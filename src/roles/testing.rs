//! A cluster of one server in this process, for the tests of `roles`.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use edgeorc_raft::{Config, Member, Replica, Role, Transport, TransportError};
use tokio_util::sync::CancellationToken;

use crate::apiserver::{self, ApiServer, ApiServerConfig};
use crate::client;
use crate::net::pki::CertificateAuthority;
use crate::rt::{Rng, TaskGroup, WallClock};
use crate::store::Store;
use crate::telemetry::Metrics;

/// Nobody is ever reached.
struct Nobody;

#[async_trait]
impl Transport for Nobody {
    async fn call(&self, peer: &Member, _: Bytes, _: Duration) -> Result<Bytes, TransportError> {
        Err(TransportError::Unreachable { peer: peer.name.clone(), reason: "alone".to_owned() })
    }
}

/// Store, API and authority of a cluster whose only server is `one`.
pub(super) struct Cluster {
    pub(super) client: kube::Client,
    pub(super) api: ApiServer,
    pub(super) replica: Replica,
    pub(super) authority: Arc<CertificateAuthority>,
    pub(super) clock: WallClock,
    tasks: TaskGroup,
    _folder: tempfile::TempDir,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.tasks.token().cancel();
    }
}

impl Cluster {
    pub(super) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let me =
            Member { id: 1, name: "one".to_owned(), address: String::new(), store_uuid: [1; 16] };
        let config = Config::new(folder.path().join("raft"), me);
        let replica = Replica::open(config, Arc::new(Nobody)).await.unwrap();
        replica.bootstrap().await.unwrap();
        let mut status = replica.status();
        status.wait_for(|status| status.role == Role::Leader).await.unwrap();
        let tasks = TaskGroup::new(&CancellationToken::new());
        let store = Store::new(replica.clone());
        let follower = store.clone();
        tasks.spawn("volatile-tier", |cancel| async move { follower.run(cancel).await });
        let (clock, rng) = (WallClock::system(), Rng::seeded(7));
        apiserver::bootstrap(&store, &clock, &rng, "ca").await.unwrap();
        let server = ApiServer::new(ApiServerConfig {
            node_name: "one".to_owned(),
            store,
            peers: None,
            node_api: None,
            clock: clock.clone(),
            rng,
            metrics: Metrics::new(),
            service_cidrs: crate::config::ServiceCidrs::default(),
            blob_dir: folder.path().join("registry"),
            bookmark_interval: Duration::from_secs(60),
            cancel: tasks.token().clone(),
        });
        let client = client::in_process(server.router(), "admin", &["system:masters"]);
        let authority = Arc::new(CertificateAuthority::generate("test", &clock).unwrap());
        Self { client, api: server, replica, authority, clock, tasks, _folder: folder }
    }
}
