//! What is counted of images and compiled code.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    result: &'static str,
}

/// Where the bytes of a blob came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// Another node.
    Peer,
    /// A registry outside of the cluster.
    Registry,
    /// The cluster's own registry, on a server.
    Server,
}

impl Origin {
    const ALL: [Self; 3] = [Self::Peer, Self::Registry, Self::Server];

    fn label(self) -> Source {
        let source = match self {
            Self::Peer => "peer",
            Self::Registry => "registry",
            Self::Server => "server",
        };
        Source { source }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Source {
    source: &'static str,
}

/// Counters of one node. Cheap to clone; all clones count into one.
#[derive(Debug, Clone)]
pub struct CodeMetrics {
    compiles: Family<Outcome, Counter>,
    compile_seconds: Histogram,
    fetched: Family<Outcome, Counter>,
    pulled_bytes: Family<Source, Counter>,
    given_bytes: Counter,
}

/// How a compile can end.
const COMPILE_RESULTS: [&str; 3] = ["ok", "refused", "unfinished"];
/// How a question for code can end.
const FETCH_RESULTS: [&str; 5] = ["ok", "absent", "refused", "tampered", "unreachable"];

impl Default for CodeMetrics {
    fn default() -> Self {
        let (compiles, fetched) = (Family::default(), Family::default());
        for (family, results) in [(&compiles, &COMPILE_RESULTS[..]), (&fetched, &FETCH_RESULTS)] {
            for result in results {
                // From zero on: what never happened is seen, too.
                let family: &Family<Outcome, Counter> = family;
                drop(family.get_or_create(&Outcome { result }));
            }
        }
        let compile_seconds = Histogram::new(exponential_buckets(0.01, 4.0, 8));
        let pulled_bytes: Family<Source, Counter> = Family::default();
        for origin in Origin::ALL {
            drop(pulled_bytes.get_or_create(&origin.label()));
        }
        Self { compiles, compile_seconds, fetched, pulled_bytes, given_bytes: Counter::default() }
    }
}

impl CodeMetrics {
    /// Adds everything to `registry`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "edgeorc_compiles",
            "Compilers that this node ran, for itself and for others, by result",
            self.compiles.clone(),
        );
        registry.register(
            "edgeorc_compile_seconds",
            "Time that these compilers ran",
            self.compile_seconds.clone(),
        );
        registry.register(
            "edgeorc_compiled_fetched",
            "Questions to servers for compiled code, by result",
            self.fetched.clone(),
        );
        registry.register(
            "edgeorc_image_pulled_bytes",
            "Bytes of images that came to this node, by where they came from",
            self.pulled_bytes.clone(),
        );
        registry.register(
            "edgeorc_image_given_bytes",
            "Bytes of images that other nodes took from this one",
            self.given_bytes.clone(),
        );
    }

    /// A piece of an image came.
    pub(super) fn pulled(&self, from: Origin, bytes: u64) {
        self.pulled_bytes.get_or_create(&from.label()).inc_by(bytes);
    }

    /// So much of an image was given to another node.
    pub(super) fn given(&self, bytes: u64) {
        self.given_bytes.inc_by(bytes);
    }

    /// Bytes that came from peers, registries and servers.
    #[cfg(test)]
    pub(super) fn pulled_bytes(&self) -> [u64; 3] {
        Origin::ALL.map(|origin| self.pulled_bytes.get_or_create(&origin.label()).get())
    }

    /// A compiler ended: one of `ok`, `refused`, `unfinished`.
    pub(super) fn compiled(&self, result: &'static str, seconds: f64) {
        self.compiles.get_or_create(&Outcome { result }).inc();
        self.compile_seconds.observe(seconds);
    }

    /// A question ended: one of `ok`, `absent`, `refused`, `tampered`, `unreachable`.
    pub(super) fn fetched(&self, result: &'static str) {
        self.fetched.get_or_create(&Outcome { result }).inc();
    }

    #[cfg(test)]
    pub(super) fn counts(&self) -> (Vec<u64>, Vec<u64>) {
        let read = |family: &Family<Outcome, Counter>, results: &[&'static str]| {
            results.iter().map(|result| family.get_or_create(&Outcome { result }).get()).collect()
        };
        (read(&self.compiles, &COMPILE_RESULTS), read(&self.fetched, &FETCH_RESULTS))
    }
}
