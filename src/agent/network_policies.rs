//! Keeps the node's table of network policies up to date, and a copy of it on disk: a node that
//! starts without a server obeys what it knew last.
//!
//! Pods and namespaces are watched only while there is a policy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::runtime::watcher;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::agent::dirs::{read_json, write_json};
use crate::client::{Informer, informer};
use crate::mesh::{KnownPolicies, Mesh, Policies, PolicyCompiler};
use crate::rt::TaskGroup;

/// Changes within this time become one table.
const DEBOUNCE: Duration = Duration::from_millis(5);
/// Pause between two writes of the copy.
const KEEP_PAUSE: Duration = Duration::from_secs(5);

/// Puts in force what the node knew when it ran last.
pub(crate) fn restore(mesh: &Mesh, file: &Path) {
    if !file.exists() {
        return;
    }
    match read_json::<KnownPolicies>(file) {
        Some(known) if known.is_empty() => {}
        Some(known) => {
            mesh.set_policies(known.table(mesh.node_name()));
            info!("network policies of the last run are in force until a server is heard");
        }
        None => warn!("the copy of the network policies cannot be read"),
    }
}

/// Publishes tables until `cancel`.
pub(crate) async fn run(
    client: kube::Client,
    mesh: Mesh,
    file: PathBuf,
    tasks: TaskGroup,
    cancel: CancellationToken,
) {
    let policies =
        informer(Api::<NetworkPolicy>::all(client.clone()), watcher::Config::default(), &tasks);
    let compiler = PolicyCompiler::new(mesh.node_name());
    let mut keeper = Keeper { client, mesh, file, tasks, compiler, followed: None, keep_at: None };
    let keeping = async {
        if !policies.ready().await {
            return;
        }
        let mut changed = policies.changed();
        loop {
            changed.borrow_and_update();
            if !keeper.update(&policies.store.state()).await {
                return;
            }
            let is_due = tokio::select! {
                more = changed.changed() => match more {
                    Ok(()) => false,
                    Err(_) => return,
                },
                is_due = keeper.wait() => is_due,
            };
            if is_due {
                keeper.keep().await;
            }
            tokio::time::sleep(DEBOUNCE).await;
        }
    };
    let _ = cancel.run_until_cancelled(keeping).await;
}

/// What policies are about, while there are some.
struct Followed {
    pods: Informer<Pod>,
    pods_changed: watch::Receiver<u64>,
    namespaces: Informer<Namespace>,
    namespaces_changed: watch::Receiver<u64>,
    tasks: TaskGroup,
}

struct Keeper {
    client: kube::Client,
    mesh: Mesh,
    file: PathBuf,
    tasks: TaskGroup,
    compiler: PolicyCompiler,
    followed: Option<Followed>,
    /// When the copy is to be written; `None`: it is as it should be.
    keep_at: Option<Instant>,
}

impl Keeper {
    /// Makes the table. `false`: the informers have ended.
    async fn update(&mut self, policies: &[Arc<NetworkPolicy>]) -> bool {
        if policies.is_empty() {
            let was_none = self.followed.is_none() && !self.file.exists();
            if !was_none {
                self.forget().await;
            }
            return true;
        }
        let followed = self.followed.get_or_insert_with(|| {
            let tasks = self.tasks.child();
            let config = watcher::Config::default;
            let pods = informer(Api::all(self.client.clone()), config(), &tasks);
            let namespaces = informer(Api::all(self.client.clone()), config(), &tasks);
            let (pods_changed, namespaces_changed) = (pods.changed(), namespaces.changed());
            Followed { pods, pods_changed, namespaces, namespaces_changed, tasks }
        });
        if !(followed.pods.ready().await && followed.namespaces.ready().await) {
            return false;
        }
        followed.pods_changed.borrow_and_update();
        followed.namespaces_changed.borrow_and_update();
        let (pods, namespaces) = (followed.pods.store.state(), followed.namespaces.store.state());
        if let Some(table) = self.compiler.update(policies, &pods, &namespaces) {
            self.mesh.set_policies(table);
            self.keep_at.get_or_insert_with(|| Instant::now() + KEEP_PAUSE);
        }
        true
    }

    /// There is no policy any more.
    async fn forget(&mut self) {
        if let Some(followed) = self.followed.take() {
            followed.tasks.token().cancel();
        }
        self.compiler = PolicyCompiler::new(self.mesh.node_name());
        self.mesh.set_policies(Policies::default());
        self.keep().await;
    }

    /// Waits for a change of pods or namespaces, or until the copy is to be written: `true`.
    ///
    /// # Cancel safety
    ///
    /// Safe: what was not heard is heard the next time.
    async fn wait(&mut self) -> bool {
        let keep_at = self.keep_at;
        let due = async {
            match keep_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let Some(followed) = &mut self.followed else {
            due.await;
            return true;
        };
        tokio::select! {
            _ = followed.pods_changed.changed() => false,
            _ = followed.namespaces_changed.changed() => false,
            () = due => true,
        }
    }

    async fn keep(&mut self) {
        self.keep_at = None;
        let (file, known) = (self.file.clone(), self.compiler.known());
        let written = self.tasks.block("keep-network-policies", move || {
            if known.is_empty() {
                return match std::fs::remove_file(&file) {
                    Err(err) if err.kind() != std::io::ErrorKind::NotFound => Err(err),
                    _ => Ok(()),
                };
            }
            write_json(&file, &known)
        });
        if let Some(Err(err)) = written.await {
            debug!(%err, "cannot keep a copy of the network policies");
        }
    }
}
