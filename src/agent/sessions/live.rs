//! What of a pod runs now: told by its worker, read by sessions.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use edgeorc_runtime::{Container, ContainerConfig, Input, Pod};
use parking_lot::Mutex;
use tokio::io::{AsyncWriteExt as _, DuplexStream};

/// Bytes of input that wait for a container to read them.
const STDIN_BYTES: usize = 64 * 1024;

/// The running part of one pod. Cheap to clone; all clones are one.
#[derive(Clone, Default)]
pub(crate) struct Live(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    sandbox: Option<Arc<dyn Pod>>,
    /// Boxed: a map sets room for eleven of what it holds aside.
    containers: BTreeMap<String, Box<LiveContainer>>,
}

/// One running container.
#[derive(Clone)]
pub(crate) struct LiveContainer {
    pub(crate) config: ContainerConfig,
    pub(crate) image: String,
    pub(crate) container: Arc<dyn Container>,
    /// Its input, if it has one.
    pub(crate) stdin: Option<Stdin>,
}

impl fmt::Debug for Live {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

impl Live {
    pub(crate) fn started(&self, sandbox: &Arc<dyn Pod>, container: LiveContainer) {
        let mut state = self.0.lock();
        state.sandbox = Some(Arc::clone(sandbox));
        state.containers.insert(container.config.name.clone(), Box::new(container));
    }

    pub(crate) fn ended(&self, container: &str) {
        self.0.lock().containers.remove(container);
    }

    /// The sandbox is gone, and everything in it.
    pub(crate) fn clear(&self) {
        *self.0.lock() = State::default();
    }

    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    pub(crate) fn sandbox(&self) -> Option<Arc<dyn Pod>> {
        self.0.lock().sandbox.clone()
    }

    /// The containers that run.
    pub(crate) fn containers(&self) -> Vec<(String, Arc<dyn Container>)> {
        let state = self.0.lock();
        let running = state.containers.iter();
        running.map(|(name, one)| (name.clone(), Arc::clone(&one.container))).collect()
    }

    pub(crate) fn container(&self, name: &str) -> Option<LiveContainer> {
        self.0.lock().containers.get(name).map(|found| found.as_ref().clone())
    }
}

/// The writing end of a container's input. Open until a client that attached ends it and the
/// container says `stdinOnce`, or the container ends.
#[derive(Clone)]
pub(crate) struct Stdin {
    pipe: Arc<tokio::sync::Mutex<Option<DuplexStream>>>,
    is_once: bool,
}

impl Stdin {
    /// Both ends.
    pub(crate) fn new(is_once: bool) -> (Self, Input) {
        let (near, far) = tokio::io::duplex(STDIN_BYTES);
        (Self { pipe: Arc::new(tokio::sync::Mutex::new(Some(near))), is_once }, Box::new(far))
    }

    /// Writes all of it; waits while the container does not read.
    pub(super) async fn write(&self, bytes: &[u8]) -> std::io::Result<()> {
        match self.pipe.lock().await.as_mut() {
            Some(pipe) => pipe.write_all(bytes).await,
            None => Err(std::io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// A client's input has ended.
    pub(super) async fn detached(&self) {
        if self.is_once {
            self.pipe.lock().await.take();
        }
    }
}
