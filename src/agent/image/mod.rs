//! Images: components from registries, kept by digest and compiled once for this machine.
//!
//! ```text
//! images/sha256/<hex>            layers, by digest
//! images/sha256/<hex>.part       a layer that is being fetched; the next try goes on with it
//! images/refs/<reference>.json   what a reference was resolved to last
//! images/trees/<hex>/            the files of an image that is a volume, by its manifest's digest
//! images/trees/<hex>.tmp/        the same while it is unpacked
//! images/volumes/<reference>.json  what a volume's reference was resolved to last
//! images/policies/<namespace>.json   which signatures a namespace wanted last
//! images/signatures/<hex>.json   a good signature of a manifest, by its digest
//! images/used.json               when images that nobody uses now were used last
//! compiled/<hex>-<engine>.cwasm  compiled code
//! ```
//!
//! Data in: image names of containers and volumes, `registries.yaml`, pull secrets, registries. Data
//! out: compiled code, folders with the files of volumes, `status.imageID`, kubelet's events about
//! pulling.
//!
//! ```text
//! name ─ stand-in ─► reference ─ registry ─► manifest ─► layer ─ a server, or the compiler ─► code
//!        registries.yaml         mirrors in order         resumed, checked
//! ```
//!
//! Compiled code is asked for at a server first, so that one node compiles for all; what a server
//! signed is taken, and nothing else. Without a server, or without code there, this node compiles.
//!
//! # Invariants
//!
//! - A file under `sha256/` without an ending holds exactly the bytes its name says.
//! - What is cached needs no server.
//! - A layer is fetched once at a time, and a module compiled once at a time, however many want it.
//! - A file under `compiled/` was made here, or a server signed its digest.
//! - A folder under `trees/` without an ending holds all files of its image, and is never changed.
//! - No code of this node ever leaves it.
//! - What a pod of this node uses is never deleted.
//! - An image runs only if the policy of its pod's namespace takes it.
//! - An image that a pull secret opened is used only by pods of namespaces whose own secrets did.
//! - A credential is sent only to the host it is meant for.
//! - Another node is asked for a blob only after the registry has said, to this pod's credentials, that
//!   it would give it; which blob an image is, the registry alone says.
//! - A blob is given only to nodes of the cluster, and only in the name of a repository that it came out
//!   of on this node: a registry that says it has what it has not, does not open another's.

mod adopt;
mod auth;
mod backoff;
mod compile;
mod config;
mod credentials;
mod distribution;
mod fetch;
mod fleet;
mod gc;
mod gunzip;
mod held;
mod known;
mod locks;
mod manifest;
mod metrics;
mod part;
mod peers;
mod places;
mod policies;
mod process;
mod proxy;
mod reader;
mod reference;
mod registries;
mod registries_file;
mod report;
mod resolve;
mod serve;
mod settings;
mod signature;
mod signed;
mod sources;
mod swarm;
mod tar;
mod transport;
mod tree;
mod unpack;
mod unzstd;
mod verifier;
mod volume;

#[cfg(test)]
mod fleet_test;
#[cfg(test)]
mod image_test;
#[cfg(test)]
mod peers_test;
#[cfg(test)]
mod pull_test;
#[cfg(test)]
mod signature_test;
#[cfg(test)]
mod volume_test;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::agent::dirs::Dirs;
use crate::agent::pod::plan::PullPolicy;
use crate::client::EventRecorder;
use crate::rt::{Rng, WallClock};
use adopt::{Adopted, Bringers};
use backoff::Backoffs;
use gc::Ledger;
use known::{Content, Resolved};
use locks::Locks;
use places::Places;
use policies::Policies;
use reference::Reference;
use swarm::Swarm;

pub use backoff::BackoffSettings;
pub(crate) use config::ImageConfig;
pub use fleet::CodeTrust;
pub use gc::ImageGcSettings;
pub(crate) use held::HeldImage;
pub use metrics::CodeMetrics;
pub(crate) use peers::Peering;
pub use peers::{PeerBody, PeerConnection, PeerDialler, PeerError};
pub use process::{CodeCompiler, CompileFailure};
pub use reader::{ComponentBlob, ImageReader, ReadError, RemoteImage, copy_place};
pub(crate) use registries_file::Registries;
pub use registries_file::check_registries_file;
pub use serve::AskingNode;
pub(crate) use serve::BlobShelf;
pub use settings::ImageSettings;
pub(crate) use signed::SIGNATURE_VALIDATION_FAILED;
pub use verifier::SignatureVerifier;

/// Transfers from one registry at a time.
const TRANSFERS_MAX: usize = 3;
/// How often an image may be deleted under the hands of the pod that wants it.
const ROUNDS_MAX: usize = 3;

/// Why an image is not ready to run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ImageError {
    /// The reference cannot be used. Give up.
    #[error("{0}")]
    Name(String),
    /// It is not here, and may not be pulled. Retry rarely: somebody may bring it.
    #[error("Container image \"{0}\" is not present with pull policy of Never")]
    NeverPulled(String),
    /// It is here, came with a pull secret of another namespace, and may not be pulled. Retry rarely.
    #[error(
        "Container image \"{0}\" is present with pull policy of Never, but no pull secret of the pod's namespace has opened it"
    )]
    NotOpened(String),
    /// The registry did not give it. Retry after `wait`.
    #[error("{message}")]
    Pull {
        /// What happened.
        message: String,
        /// Time until the next pull.
        wait: Duration,
    },
    /// It failed lately and is not tried yet. Retry after `wait`.
    #[error("Back-off pulling image \"{image}\": ErrImagePull: {message}")]
    BackOff {
        /// As the container names it.
        image: String,
        /// What happened last.
        message: String,
        /// Time until the next pull.
        wait: Duration,
    },
    /// The policy of the pod's namespace refuses it, or cannot be asked. Retry after `wait`.
    #[error("{message}")]
    Signature {
        /// Why.
        message: String,
        /// Time until the next look.
        wait: Duration,
    },
    /// It is no component this node can run. Give up, unless its name may mean another one later.
    #[error("{message}")]
    Refused {
        /// What the compiler says.
        message: String,
        /// The name is a tag, and the pull policy `Always`.
        may_change: bool,
    },
    /// The compiler did not come to an end. Retry after `wait`.
    #[error("{message}")]
    Compile {
        /// What happened.
        message: String,
        /// Time until the next try.
        wait: Duration,
    },
    /// It was deleted after it was found. Retry at once.
    #[error("the image is gone from this node")]
    Vanished,
    /// The node's disk refused. Retry.
    #[error("cannot write the image: {0}")]
    Disk(#[from] std::io::Error),
}

/// A component that can be started.
#[derive(Debug, Clone)]
pub(crate) struct ReadyImage {
    /// Its compiled code.
    pub(crate) compiled: PathBuf,
    /// `status.imageID`: the name with the digest of the manifest.
    pub(crate) id: String,
    /// What it says of its process.
    pub(crate) config: ImageConfig,
}

/// An image, and who wants it.
#[derive(Debug, Clone)]
pub(crate) struct Wanted<'a> {
    /// Its events and pull secrets.
    pub(crate) pod: &'a Pod,
    /// The container in the pod, for its events: `spec.containers{name}`; empty is the pod itself.
    pub(crate) field_path: String,
    /// As the container names it.
    pub(crate) image: &'a str,
    /// `imagePullPolicy`.
    pub(crate) pull: PullPolicy,
}

impl Wanted<'_> {
    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or("default")
    }

    fn backoff_name(&self) -> String {
        format!("{}/{}", self.uid(), self.image)
    }
}

/// An image that can be mounted; a pod keeps it for its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ReadyVolume {
    /// Names its folder, [`Dirs::image_tree`].
    pub(crate) hex: String,
    /// `volumeStatus.image.imageRef`: the name with the digest of the manifest.
    pub(crate) id: String,
}

/// What the images of a node need.
pub(crate) struct Tools {
    pub(crate) client: kube::Client,
    pub(crate) dirs: Dirs,
    pub(crate) compiler: CodeCompiler,
    pub(crate) code_trust: Option<Arc<dyn CodeTrust>>,
    /// Compiled code is good for exactly the engines that give the same string.
    pub(crate) engine: String,
    pub(crate) events: EventRecorder,
    pub(crate) clock: WallClock,
    pub(crate) rng: Rng,
    pub(crate) registries: Registries,
    /// How other nodes are asked for blobs; `None`: they are not.
    pub(crate) peering: Option<Peering>,
}

/// Where containers get their images from: [`Images`] in production.
pub(crate) trait ImageSource: Send + Sync + 'static {
    /// Pulls and compiles an image as far as that has not happened yet, and notes that the pod
    /// uses it. Tells the pod's events what kubelet would.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was fetched so far is there for the next call.
    fn ready<'a>(&'a self, wanted: &'a Wanted<'a>)
    -> BoxFuture<'a, Result<ReadyImage, ImageError>>;

    /// Pulls and unpacks an image as far as that has not happened yet, and notes that the pod uses
    /// it. What the pod `had` of it before is good for as long as it is here. Tells the pod's events
    /// what kubelet would.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: what was fetched so far is there for the next call, and unpacking ends.
    fn volume<'a>(
        &'a self,
        wanted: &'a Wanted<'a>,
        had: Option<ReadyVolume>,
    ) -> BoxFuture<'a, Result<ReadyVolume, ImageError>>;

    /// Compiles a component that lies in a file, of the node or of a pod's volume; gives its compiled code.
    fn adopt<'a>(
        &'a self,
        file: &'a Path,
        whose: Option<&'a str>,
    ) -> BoxFuture<'a, Result<PathBuf, ImageError>>;
}

/// The images of this node.
pub(crate) struct Images {
    client: kube::Client,
    dirs: Dirs,
    compiler: CodeCompiler,
    code_trust: Option<Arc<dyn CodeTrust>>,
    engine: String,
    events: EventRecorder,
    clock: WallClock,
    rng: Rng,
    registries: Registries,
    policies: Policies,
    pull_backoffs: Backoffs,
    compile_backoffs: Backoffs,
    /// What was found in files lately.
    adopted: Mutex<Adopted>,
    /// What pods brought lately.
    bringers: Mutex<Bringers>,
    /// Images that were not signed where that is only told, see [`signed`].
    unsigned: Mutex<signed::Unsigned>,
    /// Layers that are no components, with the compiler's words.
    refused: Mutex<BTreeMap<String, String>>,
    /// By hex of a layer, and by file name of a reference.
    locks: Locks,
    /// Transfers under way, by registry.
    places: Places,
    /// What other nodes are told of this one's blobs.
    swarm: Swarm,
    peering: Option<Peering>,
    ledger: Mutex<Ledger>,
    gc: ImageGcSettings,
    /// The disk is full: collect garbage at once.
    is_full: Notify,
    /// There are images that were not here, or the other way round.
    has_changed: Notify,
    /// What was told of them last.
    held: watch::Sender<Vec<HeldImage>>,
}

impl Images {
    /// The images in the node's folders.
    pub(crate) fn new(tools: Tools, settings: &ImageSettings) -> Self {
        let Tools { client, dirs, compiler, code_trust, engine, .. } = tools;
        let Tools { events, clock, rng, registries, peering, .. } = tools;
        Self {
            policies: Policies::new(client.clone(), dirs.images().join("policies")),
            ledger: Mutex::new(Ledger::read(&dirs)),
            swarm: Swarm::read(&dirs),
            client,
            dirs,
            compiler,
            code_trust,
            engine,
            events,
            clock,
            rng,
            registries,
            pull_backoffs: Backoffs::new(settings.pull_backoff),
            compile_backoffs: Backoffs::new(settings.compile_backoff),
            adopted: Mutex::default(),
            bringers: Mutex::default(),
            unsigned: Mutex::default(),
            refused: Mutex::default(),
            locks: Locks::default(),
            places: Places::new(TRANSFERS_MAX),
            peering,
            gc: settings.gc,
            is_full: Notify::new(),
            has_changed: Notify::new(),
            held: watch::Sender::default(),
        }
    }

    async fn ready_quietly(&self, wanted: &Wanted<'_>) -> Result<ReadyImage, ImageError> {
        let settings = self.registries.settings();
        let reference = Reference::parse(settings.stand_in(wanted.image))?;
        for _ in 0..ROUNDS_MAX {
            let resolved = self.resolve(wanted, &reference, Content::Component).await?;
            self.ledger.lock().begin(wanted.uid(), &resolved.layer);
            let compiled = match self.compiled_for(wanted, &resolved.layer).await {
                Err(ImageError::Vanished) => continue,
                Err(ImageError::Refused { message, .. }) => {
                    let may_change =
                        wanted.pull == PullPolicy::Always && reference.digest().is_none();
                    return Err(ImageError::Refused { message, may_change });
                }
                compiled => compiled?,
            };
            let digest = resolved.manifest.as_ref().unwrap_or(&resolved.layer);
            let id = format!("{}@sha256:{digest}", reference.name());
            let config = resolved.config.unwrap_or_default();
            return Ok(ReadyImage { compiled, id, config });
        }
        Err(ImageError::Vanished)
    }
}

impl ImageSource for Images {
    fn ready<'a>(
        &'a self,
        wanted: &'a Wanted<'a>,
    ) -> BoxFuture<'a, Result<ReadyImage, ImageError>> {
        // Boxed: a pull is large, and seldom.
        async move {
            let ready = self.ready_quietly(wanted).await;
            if let Err(error) = &ready {
                self.tell_failure(wanted, error);
            }
            ready
        }
        .boxed()
    }

    fn volume<'a>(
        &'a self,
        wanted: &'a Wanted<'a>,
        had: Option<ReadyVolume>,
    ) -> BoxFuture<'a, Result<ReadyVolume, ImageError>> {
        async move {
            let ready = self.volume_quietly(wanted, had).await;
            if let Err(error) = &ready {
                self.tell_failure(wanted, error);
            }
            ready
        }
        .boxed()
    }

    fn adopt<'a>(
        &'a self,
        file: &'a Path,
        whose: Option<&'a str>,
    ) -> BoxFuture<'a, Result<PathBuf, ImageError>> {
        self.adopt_file(file, whose).boxed()
    }
}
