//! What this node is doing about blobs, as it tells the other nodes: of those that want the same one,
//! one goes to the registry, and the others wait for it.
//!
//! Each node says what it wants before it asks the others, and notes who asked it meanwhile. Of two
//! that ask at the same time the one of the better rank goes; a node goes only if nobody better
//! asked it since its last round began. So two nodes that hear each other never both go.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use crate::agent::dirs::{Dirs, read_json};
use crate::agent::image::Resolved;
use crate::agent::image::gc::files;
use crate::agent::image::reference::Reference;

/// What a node that lacks a blob is doing about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It asks the others, or waits for one of them.
    Asking,
    /// It receives the blob: so many bytes are here.
    Fetching(u64),
}

#[derive(Debug)]
struct Want {
    /// The repository it is to come out of.
    repository: String,
    phase: Phase,
    /// Somebody of better rank has asked since the last round began.
    was_asked: bool,
}

/// A blob, by the hex of its digest, and the repository it came out of.
pub(super) type Pulled = (String, String);

/// The blobs this node wants and has.
#[derive(Debug, Default)]
pub(super) struct Swarm {
    /// At most as many as pulls run.
    wanted: Mutex<BTreeMap<String, Want>>,
    /// Blobs that came out of registries, each with the repository. Nothing else of this node is given
    /// to others: what is compiled out of volumes lies in the same folder.
    ours: Mutex<BTreeSet<Pulled>>,
}

impl Swarm {
    /// Knows the blobs that references on the disk name: those were pulled.
    pub(super) fn read(dirs: &Dirs) -> Self {
        let folder = dirs.images().join("refs");
        let names = files(&folder).unwrap_or_default().into_iter();
        let known = names.filter_map(|(name, ..)| {
            let resolved: Resolved = read_json(&folder.join(&name))?;
            Some((resolved.layer, Reference::scope_of_file(&name)?))
        });
        Self { ours: Mutex::new(known.collect()), ..Self::default() }
    }

    /// Says that this node wants a blob, until the claim is dropped. One claim for each blob.
    pub(super) fn claim<'a>(&'a self, hex: &'a str, repository: &str) -> Claim<'a> {
        let repository = repository.to_owned();
        let want = Want { repository: repository.clone(), phase: Phase::Asking, was_asked: false };
        self.wanted.lock().insert(hex.to_owned(), want);
        Claim { swarm: self, hex, repository }
    }

    /// What this node is doing about a blob, told to `asker`, which wants it out of the same
    /// repository.
    pub(super) fn asked(&self, blob: &Pulled, asker: &str, me: &str) -> Option<Phase> {
        let (hex, repository) = blob;
        let mut wanted = self.wanted.lock();
        let want = wanted.get_mut(hex).filter(|want| want.repository == *repository)?;
        want.was_asked |= is_better(hex, asker, me);
        Some(want.phase)
    }

    /// A blob came out of a repository.
    pub(super) fn keep(&self, hex: &str, repository: &str) {
        self.ours.lock().insert((hex.to_owned(), repository.to_owned()));
    }

    /// Whether a blob may be given to those who may pull from the repository, if it is here.
    pub(super) fn is_ours(&self, blob: &Pulled) -> bool {
        self.ours.lock().contains(blob)
    }
}

/// This node's word that it wants a blob.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    swarm: &'a Swarm,
    hex: &'a str,
    repository: String,
}

impl Claim<'_> {
    /// The repository that the blob is wanted out of.
    pub(super) fn repository(&self) -> &str {
        &self.repository
    }

    /// A round of questions begins: whoever asked before will be asked in it.
    pub(super) fn begin_round(&self) {
        self.change(|want| (want.phase, want.was_asked) = (Phase::Asking, false));
    }

    /// Goes to the registry, unless somebody better has asked meanwhile.
    pub(super) fn try_go(&self) -> bool {
        let mut may_go = false;
        self.change(|want| {
            may_go = !want.was_asked;
            if may_go {
                want.phase = Phase::Fetching(0);
            }
        });
        may_go
    }

    /// So many bytes of the blob are here.
    pub(super) fn has(&self, bytes: u64) {
        self.change(|want| want.phase = Phase::Fetching(bytes));
    }

    fn change(&self, change: impl FnOnce(&mut Want)) {
        if let Some(want) = self.swarm.wanted.lock().get_mut(self.hex) {
            change(want);
        }
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.swarm.wanted.lock().remove(self.hex);
    }
}

/// Whether `a` comes before `b` for this blob: an order that all nodes agree on, and another for
/// each blob, so that the work is spread.
pub(super) fn is_better(hex: &str, a: &str, b: &str) -> bool {
    rank(hex, a) < rank(hex, b)
}

/// Place of a node in the order for a blob (rendezvous hashing).
pub(super) fn rank(hex: &str, node: &str) -> [u8; 32] {
    Sha256::new().chain_update(hex).chain_update(b"/").chain_update(node).finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names in the order for the blob `x`.
    fn ranked() -> (String, String) {
        let (a, b) = ("a".to_owned(), "b".to_owned());
        if is_better("x", &a, &b) { (a, b) } else { (b, a) }
    }

    fn x() -> Pulled {
        ("x".to_owned(), "r".to_owned())
    }

    #[test]
    fn of_two_that_ask_at_once_the_better_goes_whatever_the_order_of_their_messages() {
        let (first, second) = ranked();
        let (of_first, of_second) = (Swarm::default(), Swarm::default());
        let (better, worse) = (of_first.claim("x", "r"), of_second.claim("x", "r"));
        better.begin_round();
        worse.begin_round();
        assert_eq!(of_second.asked(&x(), &first, &second), Some(Phase::Asking));
        assert_eq!(of_first.asked(&x(), &second, &first), Some(Phase::Asking));
        assert!(!worse.try_go(), "the better one asked it");
        assert!(better.try_go());
        assert_eq!(of_first.asked(&x(), &second, &first), Some(Phase::Fetching(0)));
    }

    #[test]
    fn who_went_before_the_better_one_asked_is_waited_for() {
        let (first, second) = ranked();
        let of_second = Swarm::default();
        let worse = of_second.claim("x", "r");
        worse.begin_round();
        assert!(worse.try_go());
        worse.has(7);
        assert_eq!(of_second.asked(&x(), &first, &second), Some(Phase::Fetching(7)));
        drop(worse);
        assert_eq!(of_second.asked(&x(), &first, &second), None);
    }

    #[test]
    fn a_blob_is_known_only_to_those_who_name_the_repository_it_came_out_of() {
        let swarm = Swarm::default();
        swarm.keep("x", "r");
        swarm.keep("y", "r");
        let of = |hex: &str, repository: &str| (hex.to_owned(), repository.to_owned());
        assert!(swarm.is_ours(&x()) && swarm.is_ours(&of("y", "r")));
        assert!(!swarm.is_ours(&of("y", "other")) && !swarm.is_ours(&of("volume", "r")));
        let _claim = swarm.claim("z", "r");
        assert_eq!(swarm.asked(&of("z", "other"), "a", "b"), None);
        assert_eq!(swarm.asked(&of("z", "r"), "a", "b"), Some(Phase::Asking));
    }
}
