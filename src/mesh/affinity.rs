//! Session affinity: a client that comes again gets the endpoint that it had.
//!
//! A client is a pod of this node by its uid, or someone outside by address. What it had is kept
//! per port of a Service and survives changes of the routing table; it is forgotten when the
//! Service's time is over, or the endpoint is gone or fails.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::Mesh;
use super::balancer::{Backend, Dice};

/// Clients that are remembered for one port; those that came longest ago are forgotten first.
const CLIENTS_MAX: usize = 8192;

/// Who had which endpoint of one port.
#[derive(Debug)]
pub(super) struct Affinity {
    timeout_ms: u64,
    clients: Mutex<BTreeMap<Box<str>, Pin>>,
}

#[derive(Debug, Clone, Copy)]
struct Pin {
    address: SocketAddr,
    used_at_ms: u64,
}

impl Affinity {
    pub(super) fn new(seconds: u64) -> Self {
        Self { timeout_ms: seconds.saturating_mul(1000), clients: Mutex::default() }
    }

    /// Whether it was made for that time.
    pub(super) fn is_for(&self, seconds: u64) -> bool {
        self.timeout_ms == seconds.saturating_mul(1000)
    }

    /// What the client had, unless that is too long ago.
    fn had(&self, client: &str, now_ms: u64) -> Option<SocketAddr> {
        let clients = self.clients.lock();
        let pin = clients.get(client)?;
        (now_ms.saturating_sub(pin.used_at_ms) < self.timeout_ms).then_some(pin.address)
    }

    fn keep(&self, client: &str, address: SocketAddr, now_ms: u64) {
        let pin = Pin { address, used_at_ms: now_ms };
        let mut clients = self.clients.lock();
        if let Some(known) = clients.get_mut(client) {
            *known = pin;
            return;
        }
        if clients.len() >= CLIENTS_MAX {
            let oldest_kept = median(clients.values().map(|pin| pin.used_at_ms).collect());
            let timeout_ms = self.timeout_ms;
            clients.retain(|_, pin| {
                pin.used_at_ms > oldest_kept && now_ms.saturating_sub(pin.used_at_ms) < timeout_ms
            });
        }
        clients.insert(client.into(), pin);
    }
}

fn median(mut times: Vec<u64>) -> u64 {
    let middle = times.len() / 2;
    if middle >= times.len() {
        return 0;
    }
    *times.select_nth_unstable(middle).1
}

impl Backend {
    /// The backend for this client: with session affinity, one that prefers what the client had.
    pub(super) fn for_client(self: Arc<Self>, client: &str, dice: &Dice, now_ms: u64) -> Arc<Self> {
        let Some(affinity) = self.affinity() else { return self };
        let had = affinity.had(client, now_ms);
        let known = had.and_then(|had| self.endpoints.iter().find(|one| one.address == had));
        let preferred = match known.filter(|endpoint| endpoint.is_available(now_ms)) {
            Some(endpoint) => Arc::clone(endpoint),
            None => match self.pick(&[], dice, now_ms) {
                Some(endpoint) => endpoint,
                None => return self,
            },
        };
        affinity.keep(client, preferred.address, now_ms);
        Arc::new(self.preferring(preferred))
    }
}

impl Mesh {
    /// `backend` for a certain client; "" is nobody in particular.
    pub(super) fn for_client(&self, backend: Arc<Backend>, client: &str) -> Arc<Backend> {
        if client.is_empty() {
            return backend;
        }
        backend.for_client(client, &self.0.dice, self.now_ms())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::mesh::balancer::Tier;
    use crate::mesh::endpoint::EndpointState;
    use crate::mesh::routes::Place;
    use crate::rt::Rng;

    fn backend(count: u8, affinity: Option<&Arc<Affinity>>) -> Arc<Backend> {
        let endpoint = |at| {
            let address = ([10, 42, 0, at], 80).into();
            Arc::new(EndpointState::new(address, Place::Local, None))
        };
        let backend = Backend::new((1..=count).map(endpoint).collect(), |_| Tier::Node);
        Arc::new(backend.with_affinity(affinity.cloned()))
    }

    fn picked(backend: &Arc<Backend>, client: &str, dice: &Dice, now_ms: u64) -> SocketAddr {
        let backend = Arc::clone(backend).for_client(client, dice, now_ms);
        backend.pick(&[], dice, now_ms).unwrap().address
    }

    #[test]
    fn a_client_gets_what_it_had_until_the_time_is_over() {
        let dice = Dice::new(&Rng::seeded(1));
        let affinity = Arc::new(Affinity::new(10));
        let all = backend(20, Some(&affinity));
        let had = picked(&all, "10.0.0.1", &dice, 0);
        for step in 1..50 {
            // Each visit counts anew.
            assert_eq!(picked(&all, "10.0.0.1", &dice, step * 9_000), had);
        }
        let end = 49 * 9_000;
        let later: BTreeSet<_> =
            (1..50).map(|step| picked(&all, "10.0.0.1", &dice, end + step * 10_000)).collect();
        assert!(later.len() > 5, "{later:?}");
        let others: BTreeSet<_> =
            (0..50).map(|at| picked(&all, &format!("10.0.1.{at}"), &dice, end)).collect();
        assert!(others.len() > 5, "{others:?}");
    }

    #[test]
    fn a_client_moves_when_its_endpoint_is_gone_or_left_out_and_stays_there() {
        let dice = Dice::new(&Rng::seeded(2));
        let affinity = Arc::new(Affinity::new(100));
        let all = backend(5, Some(&affinity));
        let had = picked(&all, "c", &dice, 0);
        let endpoint = all.endpoints.iter().find(|one| one.address == had).unwrap();
        endpoint.eject(10);
        let moved = picked(&all, "c", &dice, 10);
        assert_ne!(moved, had);
        assert_eq!(picked(&all, "c", &dice, 90_000), moved);
        // The table was swapped for one without it.
        let others: Vec<_> =
            all.endpoints.iter().filter(|one| one.address != moved).cloned().collect();
        let swapped = Backend::new(others, |_| Tier::Node).with_affinity(Some(affinity));
        assert_ne!(picked(&Arc::new(swapped), "c", &dice, 90_001), moved);
    }

    #[test]
    fn without_affinity_a_client_gets_any() {
        let dice = Dice::new(&Rng::seeded(3));
        let all = backend(20, None);
        let found: BTreeSet<_> = (0..50).map(|_| picked(&all, "c", &dice, 0)).collect();
        assert!(found.len() > 5);
        let empty = Arc::new(Backend::default().with_affinity(Some(Arc::new(Affinity::new(1)))));
        assert!(empty.for_client("c", &dice, 0).pick(&[], &dice, 0).is_none());
    }

    #[test]
    fn the_number_of_clients_is_bounded() {
        let affinity = Affinity::new(1000);
        let at = "10.42.0.1:80".parse().unwrap();
        for client in 0..3 * CLIENTS_MAX {
            affinity.keep(&client.to_string(), at, client as u64);
            assert!(affinity.clients.lock().len() <= CLIENTS_MAX);
        }
        let last = (3 * CLIENTS_MAX - 1).to_string();
        assert!(affinity.had(&last, 3 * CLIENTS_MAX as u64).is_some());
    }
}
