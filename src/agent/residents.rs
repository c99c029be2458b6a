//! The pods that this node runs, for whoever measures or evicts them.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::agent::dirs::PodDir;
use crate::agent::pod::plan::is_terminal;
use crate::agent::pod::writer::Numbered;
use crate::agent::sessions::Live;

/// Why a pod has to go, in the words of its status; `None` while it may stay.
pub(crate) type Verdict = Option<String>;

/// One pod, as its worker shows it.
#[derive(Debug, Clone)]
pub(crate) struct Resident {
    /// The pod as the API has it.
    pub(crate) seen: watch::Receiver<Arc<Pod>>,
    /// Where it is.
    pub(crate) states: watch::Receiver<Numbered>,
    /// What of it runs.
    pub(crate) live: Live,
    pub(crate) dir: PodDir,
    /// Tells its worker that it is evicted.
    pub(crate) verdict: watch::Sender<Verdict>,
}

impl Resident {
    /// The pod as the API has it.
    pub(crate) fn pod(&self) -> Arc<Pod> {
        Arc::clone(&self.seen.borrow())
    }

    /// Whether it has ended for good, in this life of the agent or before.
    pub(crate) fn has_ended(&self) -> bool {
        let has_ended_before = || is_terminal(&self.seen.borrow()) && self.live.sandbox().is_none();
        self.states.borrow().1.outcome.is_some() || has_ended_before()
    }

    /// Whether it has ended, or is about to.
    pub(crate) fn is_leaving(&self) -> bool {
        self.has_ended() || self.states.borrow().1.is_over() || self.verdict.borrow().is_some()
    }
}

/// The pods by uid. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Residents(Arc<Mutex<BTreeMap<String, Resident>>>);

impl Residents {
    pub(crate) fn insert(&self, uid: &str, resident: Resident) {
        self.0.lock().insert(uid.to_owned(), resident);
    }

    pub(crate) fn remove(&self, uid: &str) {
        self.0.lock().remove(uid);
    }

    /// Everybody who is here now, by uid.
    pub(crate) fn all(&self) -> Vec<(String, Resident)> {
        self.0.lock().iter().map(|(uid, resident)| (uid.clone(), resident.clone())).collect()
    }
}
