//! What the node's routes are made of, as a copy on disk: a node that starts without a server finds the
//! Services, endpoints, Ingresses and Gateways that it knew last, with their certificates.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use miniz_oxide::deflate::compress_to_vec_zlib;
use miniz_oxide::inflate::decompress_to_vec_zlib_with_limit;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::agent::dirs::{Dirs, read_own, write_atomic};
use crate::agent::sealed::NodeKey;
use crate::api::gateway::{Gateway, GatewayClass, GatewayObjects, HTTPRoute, ReferenceGrant};
use crate::mesh::{CertificatePem, HttpObjects, HttpRoutes, Mesh, Routes, SecretName};
use crate::rt::TaskGroup;

/// Shortest and longest pause between two writes of the copy: endpoints change with every pod, and flash
/// wears out. In between the pause is as long as [`WEAR_BYTES_PER_SECOND`] asks for.
const KEEP_PAUSE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_mins(10));
/// Bytes that the copy may write in the long run, each second.
const WEAR_BYTES_PER_SECOND: usize = 1024;
/// Largest copy that is read back, inflated, in bytes.
const INFLATED_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How much is tried to make the copy small: of objects that are much alike, the least is enough.
const DEFLATE_LEVEL: u8 = 1;
/// What the sealed copy is about; the number is that of its form: deflated (RFC 1950) JSON.
const ABOUT: &str = "routes/2";
/// The form before: plain JSON.
const ABOUT_1: &str = "routes";

/// Everything that routes are made of.
#[derive(Debug, Default)]
pub(crate) struct KnownRoutes {
    pub(crate) services: Vec<Arc<Service>>,
    pub(crate) slices: Vec<Arc<EndpointSlice>>,
    pub(crate) nodes: Vec<Arc<Node>>,
    pub(crate) http: HttpObjects,
    pub(crate) certificates: BTreeMap<SecretName, CertificatePem>,
}

/// The same on disk, without the Nodes: slices say on which node their endpoints are, and while no server is
/// heard the way to other nodes is not known. Maps with keys that are no texts are lists.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Copied {
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
    ingresses: Vec<Ingress>,
    ingress_classes: Vec<IngressClass>,
    classes: Vec<GatewayClass>,
    gateways: Vec<Gateway>,
    routes: Vec<HTTPRoute>,
    grants: Vec<ReferenceGrant>,
    namespaces: BTreeMap<String, BTreeMap<String, String>>,
    certificates: Vec<(SecretName, Vec<u8>, Vec<u8>)>,
}

/// The objects themselves, without what only costs space.
fn plain<K: Clone>(all: &[Arc<K>]) -> Vec<K> {
    all.iter().map(|one| K::clone(one)).collect()
}

fn shared<K>(all: Vec<K>) -> Vec<Arc<K>> {
    all.into_iter().map(Arc::new).collect()
}

impl KnownRoutes {
    /// Publishes the tables, with those of HTTP as they were built of it.
    pub(crate) fn publish(&self, http: HttpRoutes, mesh: &Mesh) {
        let routes = Routes::build(
            self.services.iter().map(AsRef::as_ref),
            self.slices.iter().map(AsRef::as_ref),
            self.nodes.iter().map(AsRef::as_ref),
            [],
            mesh.node_name(),
        );
        mesh.set_certificates(self.certificates.clone());
        mesh.publish(routes.with_http(http));
    }

    fn copied(&self) -> Copied {
        let gateway = &self.http.gateway;
        Copied {
            services: plain(&self.services),
            slices: plain(&self.slices),
            ingresses: plain(&self.http.ingresses),
            ingress_classes: plain(&self.http.ingress_classes),
            classes: plain(&gateway.classes),
            gateways: plain(&gateway.gateways),
            routes: plain(&gateway.routes),
            grants: plain(&gateway.grants),
            namespaces: gateway.namespaces.clone(),
            certificates: self
                .certificates
                .iter()
                .map(|(name, pem)| (name.clone(), pem.chain.clone(), pem.key.clone()))
                .collect(),
        }
    }

    fn of(copied: Copied) -> Self {
        let services = shared(copied.services);
        Self {
            http: HttpObjects {
                ingresses: shared(copied.ingresses),
                ingress_classes: shared(copied.ingress_classes),
                gateway: GatewayObjects {
                    classes: shared(copied.classes),
                    gateways: shared(copied.gateways),
                    routes: shared(copied.routes),
                    grants: shared(copied.grants),
                    namespaces: copied.namespaces,
                },
                services: services.clone(),
            },
            services,
            slices: shared(copied.slices),
            certificates: copied
                .certificates
                .into_iter()
                .map(|(name, chain, key)| (name, CertificatePem { chain, key }))
                .collect(),
            nodes: Vec::new(),
        }
    }
}

/// Keeps the copy.
pub(crate) struct Keeper {
    file: PathBuf,
    key: NodeKey,
    /// Hash of what is on disk.
    on_disk: Option<[u8; 32]>,
    /// When the next write may be.
    next: Instant,
    /// Whether something has changed since the last.
    is_stale: bool,
}

impl Keeper {
    pub(crate) fn new(dirs: &Dirs) -> Self {
        let (file, key) = (dirs.routes_file(), dirs.key().clone());
        Self { file, key, on_disk: None, next: Instant::now(), is_stale: false }
    }

    /// What the last run kept. Blocks on the disk.
    pub(crate) fn restore(&mut self) -> Option<KnownRoutes> {
        let content = read_own(&self.file)?;
        let deflated = self.key.unseal(ABOUT, &content);
        let plain = match deflated {
            Some(deflated) => decompress_to_vec_zlib_with_limit(&deflated, INFLATED_BYTES_MAX).ok(),
            None => self.key.unseal(ABOUT_1, &content),
        };
        let found = plain.and_then(|plain| {
            self.on_disk = Some(Sha256::digest(&plain).into());
            parse::<Copied>(&plain)
        });
        match found {
            Some(copied) => {
                info!("routes of the last run are in force until a server is heard");
                Some(KnownRoutes::of(copied))
            }
            None => {
                warn!("the copy of the routes cannot be read");
                None
            }
        }
    }

    /// Something may have changed.
    pub(crate) fn touch(&mut self) {
        self.is_stale = true;
    }

    /// Waits until the copy is to be written; for ever when it is as it should be.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is done.
    pub(crate) async fn is_due(&self) {
        if self.is_stale {
            tokio::time::sleep_until(self.next).await;
        } else {
            std::future::pending().await
        }
    }

    /// Writes it, if it differs from what is there.
    pub(crate) async fn write(&mut self, known: &KnownRoutes, tasks: &TaskGroup) {
        self.is_stale = false;
        self.next = Instant::now() + KEEP_PAUSE.0;
        let plain = match serde_json::to_vec(&known.copied()) {
            Ok(plain) => plain,
            Err(err) => return debug!(%err, "routes that cannot be kept"),
        };
        let hash = Some(Sha256::digest(&plain).into());
        if std::mem::replace(&mut self.on_disk, hash) == hash {
            return;
        }
        let (file, key) = (self.file.clone(), self.key.clone());
        let written = tasks
            .block("keep-routes", move || {
                if plain.len() > INFLATED_BYTES_MAX {
                    return Err(io::ErrorKind::FileTooLarge.into());
                }
                let sealed = key.seal(ABOUT, &compress_to_vec_zlib(&plain, DEFLATE_LEVEL))?;
                write_atomic(&file, &sealed).map(|()| sealed.len())
            })
            .await;
        match written {
            Some(Ok(bytes)) => self.next = Instant::now() + pause_after(bytes),
            Some(Err(err)) => {
                self.on_disk = None;
                warn!(%err, "cannot keep a copy of the routes");
            }
            None => {}
        }
    }
}

/// When the next copy may follow one of so many bytes.
fn pause_after(bytes: usize) -> Duration {
    let seconds = u64::try_from(bytes / WEAR_BYTES_PER_SECOND).unwrap_or(u64::MAX);
    Duration::from_secs(seconds).clamp(KEEP_PAUSE.0, KEEP_PAUSE.1)
}

fn parse<T: DeserializeOwned>(plain: &[u8]) -> Option<T> {
    serde_json::from_slice(plain).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_routes_were_made_of_is_found_by_the_next_run_and_written_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let dirs = Dirs::create(folder.path().to_owned()).unwrap();
        let service = |name: &str| -> Arc<Service> {
            Arc::new(serde_json::from_value(json!({"metadata": {"name": name}})).unwrap())
        };
        let known = |name: &str| KnownRoutes {
            services: vec![service(name)],
            certificates: BTreeMap::from([(
                ("default".to_owned(), "tls".to_owned()),
                CertificatePem { chain: b"chain".to_vec(), key: b"the-private-key".to_vec() },
            )]),
            ..KnownRoutes::default()
        };
        let tasks = TaskGroup::new(&CancellationToken::new());
        let mut keeper = Keeper::new(&dirs);
        assert!(keeper.restore().is_none(), "there was no last run");
        keeper.touch();
        keeper.is_due().await;
        keeper.write(&known("web"), &tasks).await;
        let bytes = std::fs::read(dirs.routes_file()).unwrap();
        assert!(!bytes.windows(11).any(|part| part == b"private-key"));

        let mut next = Keeper::new(&dirs);
        let found = next.restore().unwrap();
        assert_eq!(found.services, known("web").services);
        assert_eq!(found.http.services.len(), 1);
        assert_eq!(found.certificates.values().next().unwrap().key, b"the-private-key");
        // The same again is no write; something else is one, not at once after the last.
        let written = || std::fs::metadata(dirs.routes_file()).unwrap().modified().unwrap();
        let before = written();
        next.touch();
        next.write(&known("web"), &tasks).await;
        assert_eq!(written(), before);
        keeper.touch();
        assert!(tokio::time::timeout(Duration::from_secs(9), keeper.is_due()).await.is_err());
        let pause = Duration::from_secs(60);
        assert!(tokio::time::timeout(pause, keeper.is_due()).await.is_ok());
        assert!(tokio::time::timeout(pause, next.is_due()).await.is_err());
        // A copy of the version before is read, and is no other one.
        let plain = serde_json::to_vec(&known("web").copied()).unwrap();
        let old = dirs.key().seal(ABOUT_1, &plain).unwrap();
        std::fs::write(dirs.routes_file(), &old).unwrap();
        let mut after = Keeper::new(&dirs);
        assert_eq!(after.restore().unwrap().services, known("web").services);
        tasks.shutdown(Duration::from_secs(1)).await;
    }

    #[test]
    fn a_large_copy_is_written_seldom() {
        assert_eq!(pause_after(8 * 1024), KEEP_PAUSE.0);
        assert_eq!(pause_after(60 * WEAR_BYTES_PER_SECOND), Duration::from_secs(60));
        assert_eq!(pause_after(usize::MAX), KEEP_PAUSE.1);
    }
}
