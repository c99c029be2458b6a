//! Requests to Services without endpoints that are worth a wait: their workload is scaled to zero, and a
//! request is what brings it back.
//!
//! Such a Service carries a mark; its backends then know where later ones are told. Which Services have
//! requests that wait is told as well, so that somebody can make a pod. What waits is bounded in number
//! and in time.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tracing::debug;

use super::Mesh;
use super::balancer::Backend;
use super::endpoint::EndpointState;
use super::routes::{Protocol, ServiceKey};

/// Requests and connections that wait at a node; more are refused at once.
pub(super) const WAITING_MAX: usize = 1024;
/// How long one waits: what a pod takes to start, with its image to be fetched.
pub(super) const WAIT_MAX: Duration = Duration::from_secs(30);

/// A port of a Service as some clients see it, from one table to the next.
pub(super) type AwaitedKey = (ServiceKey, Protocol, u16, &'static str);

/// Where the backends of one Service port are told that replace those that have no endpoint.
#[derive(Debug)]
pub(super) struct Awaited {
    service: ServiceKey,
    latest: watch::Sender<Weak<Backend>>,
}

impl Awaited {
    pub(super) fn new(service: &ServiceKey) -> Self {
        Self { service: service.clone(), latest: watch::Sender::new(Weak::new()) }
    }

    /// Tells of the backend in use from now on.
    pub(super) fn tell(&self, backend: &Arc<Backend>) {
        self.latest.send_replace(Arc::downgrade(backend));
    }
}

/// What waits at this node.
#[derive(Debug)]
pub(super) struct Waiting {
    places: Semaphore,
    /// By Service, how many wait.
    counts: watch::Sender<BTreeMap<ServiceKey, usize>>,
}

impl Default for Waiting {
    fn default() -> Self {
        let counts = watch::Sender::new(BTreeMap::new());
        Self { places: Semaphore::new(WAITING_MAX), counts }
    }
}

/// One that waits; it is counted as long as this lives.
struct Waiter<'a> {
    waiting: &'a Waiting,
    service: &'a ServiceKey,
}

impl<'a> Waiter<'a> {
    fn new(waiting: &'a Waiting, service: &'a ServiceKey) -> Self {
        waiting.counts.send_if_modified(|counts| {
            let count = counts.entry(service.clone()).or_insert(0);
            *count = count.saturating_add(1);
            *count == 1
        });
        Self { waiting, service }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.waiting.counts.send_if_modified(|counts| {
            let left = counts.get_mut(self.service).map(|count| {
                *count = count.saturating_sub(1);
                *count
            });
            if left == Some(0) {
                counts.remove(self.service);
            }
            left == Some(0)
        });
    }
}

impl Mesh {
    /// The Services that have requests waiting at this node, with how many; told anew when one comes or
    /// goes.
    #[must_use]
    pub fn waiting_services(&self) -> watch::Receiver<BTreeMap<ServiceKey, usize>> {
        self.0.waiting.counts.subscribe()
    }

    /// Waits until the Service behind `awaited` has an endpoint that is none of `tried`, and returns the
    /// backend that has it. `None`: too many wait already, or it took too long.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: who gives up no longer counts as waiting.
    pub(super) async fn await_endpoint(
        &self,
        awaited: &Awaited,
        tried: &[Arc<EndpointState>],
    ) -> Option<Arc<Backend>> {
        let waiting = &self.0.waiting;
        let Ok(_place) = waiting.places.try_acquire() else {
            debug!(k8s.service.name = awaited.service.1, "too many requests wait");
            return None;
        };
        let _counted = Waiter::new(waiting, &awaited.service);
        let mut latest = awaited.latest.subscribe();
        let ends_at = Instant::now() + WAIT_MAX;
        loop {
            let backend = latest.borrow_and_update().upgrade();
            let is_fresh = |one: &Arc<EndpointState>| !tried.iter().any(|t| Arc::ptr_eq(t, one));
            if let Some(backend) = backend.filter(|backend| backend.endpoints.iter().any(is_fresh))
            {
                return Some(backend);
            }
            match tokio::time::timeout_at(ends_at, latest.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return None,
            }
        }
    }
}
