//! Compiled code for all nodes: made once per component and engine, signed, and handed out.
//!
//! Data in: components out of the registry, or brought by a node. Data out: code with the ticket of
//! this server ([`crate::api::compiled_code`]).
//!
//! ```text
//! GET ─► shelf ─► ticket and code
//!          └─ not there ─► job: servers in the order of their rank for this code
//!                            ├─ another server ─► its code, checked, onto the shelf
//!                            └─ this server ─► the compiler, if it is for this engine
//! ```
//!
//! A job goes on when nobody waits for it; who waits is answered "later" after a while and asks
//! again. All servers rank alike, so that one compiles and the others fetch from it; one that does not
//! answer is left out.
//!
//! # Invariants
//!
//! - What is on the shelf was made by this server's compiler, or another server signed it.
//! - One code is made once at a time, however many want it.
//! - A question that says `only=here` asks no other server: two servers never wait for each other.
//! - The shelf is a cache: bounded, the longest unused goes first.

mod handler;
mod jobs;
mod owner;
mod receive;
mod shelf;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;

use crate::api::compiled_code::ROUTE;
use crate::apiserver::context::Context;
use crate::net::Identity;
use crate::rt::TaskGroup;
use jobs::Jobs;
use shelf::Shelf;

/// Default of [`CompiledConfig::bytes_max`].
const SHELF_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Why there is no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MakeError {
    /// The component was refused; the same bytes will be refused again. Give up.
    #[error("{0}")]
    Refused(String),
    /// It did not come to an end. Retry later, or elsewhere.
    #[error("{0}")]
    Unfinished(String),
}

/// Makes compiled code: the agent's compiler in production.
pub trait CodeMaker: Send + Sync + 'static {
    /// Whose engine's code it makes; `None` if this server does not compile.
    fn engine(&self) -> Option<&str>;

    /// Compiles the component in the first file into the second.
    fn make<'a>(
        &'a self,
        component: &'a Path,
        code: &'a Path,
    ) -> BoxFuture<'a, Result<(), MakeError>>;
}

/// What the sharing of compiled code is made of.
#[derive(Clone)]
pub struct CompiledConfig {
    /// Signs, and checks what other servers signed.
    pub identity: Identity,
    /// Compiles.
    pub maker: Arc<dyn CodeMaker>,
    /// Folder of the shelf; created if missing.
    pub dir: PathBuf,
    /// Folders with components by digest, beside the registry: images of this machine's pods.
    pub components: Vec<PathBuf>,
    /// Most bytes on the shelf. Default 1 GiB.
    pub bytes_max: u64,
}

impl CompiledConfig {
    /// With the defaults.
    #[must_use]
    pub fn new(identity: Identity, maker: Arc<dyn CodeMaker>, dir: PathBuf) -> Self {
        Self { identity, maker, dir, components: Vec::new(), bytes_max: SHELF_BYTES_MAX }
    }
}

impl std::fmt::Debug for CompiledConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CompiledConfig").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// Which code: both by 64 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    engine: String,
    component: String,
}

/// Shared by all requests. Cheap to clone.
type Compiled = Arc<Inner>;

struct Inner {
    context: Context,
    config: CompiledConfig,
    shelf: Mutex<Shelf>,
    jobs: Jobs,
    tasks: TaskGroup,
}

/// The routes, with their state.
pub(super) fn router(context: Context, config: CompiledConfig) -> Router {
    let shelf = Shelf::open(config.dir.clone(), config.bytes_max);
    let tasks = TaskGroup::new(&context.cancel);
    let inner = Inner { context, config, shelf: Mutex::new(shelf), jobs: Jobs::default(), tasks };
    Router::new().route(ROUTE, axum::routing::any(handler::respond)).with_state(Arc::new(inner))
}
