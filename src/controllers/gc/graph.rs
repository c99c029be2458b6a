//! Who owns whom, as far as the caches know.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// Where an object is: its row in the table of resources, namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ObjectKey {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
}

/// What the collector knows of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Entry {
    pub(super) uid: String,
    pub(super) resource_version: Option<String>,
    pub(super) owners: Vec<OwnerReference>,
    pub(super) finalizers: Vec<String>,
    pub(super) is_deleting: bool,
}

impl Entry {
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            is_deleting: meta.deletion_timestamp.is_some(),
        }
    }

    /// Whether deletion waits for this finalizer.
    pub(super) fn awaits(&self, finalizer: &str) -> bool {
        self.is_deleting && self.finalizers.iter().any(|found| found == finalizer)
    }
}

/// All objects, and the dependents of each owner.
#[derive(Debug, Default)]
pub(super) struct Graph {
    objects: BTreeMap<ObjectKey, Entry>,
    by_uid: BTreeMap<String, ObjectKey>,
    dependents: BTreeMap<String, BTreeSet<ObjectKey>>,
}

impl Graph {
    /// Takes note of an object. Returns the keys to look at.
    pub(super) fn put(&mut self, key: &ObjectKey, entry: Entry) -> Vec<ObjectKey> {
        let mut touched = BTreeSet::new();
        if self.objects.get(key).is_some_and(|known| known.uid != entry.uid) {
            touched.extend(self.remove(key));
        }
        self.unlink(key);
        for owner in &entry.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(key.clone());
        }
        self.by_uid.insert(entry.uid.clone(), key.clone());
        if !entry.owners.is_empty() || entry.is_deleting {
            touched.insert(key.clone());
        }
        // An owner that waits for its dependents hears of what they do, also of those that it lets go.
        touched.extend(self.waiting_owners(&entry));
        if let Some(before) = self.objects.get(key) {
            touched.extend(self.waiting_owners(before));
        }
        self.objects.insert(key.clone(), entry);
        touched.into_iter().collect()
    }

    /// The object is gone. Returns the keys to look at: its dependents, and owners that wait.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> Vec<ObjectKey> {
        self.unlink(key);
        let Some(entry) = self.objects.remove(key) else {
            return Vec::new();
        };
        self.by_uid.remove(&entry.uid);
        let mut touched = self.dependents_of(&entry.uid);
        touched.extend(self.waiting_owners(&entry));
        touched
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<&Entry> {
        self.objects.get(key)
    }

    /// The object of that uid.
    pub(super) fn owner(&self, uid: &str) -> Option<&Entry> {
        self.objects.get(self.by_uid.get(uid)?)
    }

    pub(super) fn dependents_of(&self, uid: &str) -> Vec<ObjectKey> {
        self.dependents.get(uid).into_iter().flatten().cloned().collect()
    }

    fn unlink(&mut self, key: &ObjectKey) {
        let Some(entry) = self.objects.get(key) else { return };
        for owner in &entry.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(key);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
    }

    fn waiting_owners(&self, entry: &Entry) -> Vec<ObjectKey> {
        let owners = entry.owners.iter().filter_map(|owner| self.by_uid.get(&owner.uid));
        owners
            .filter(|key| self.objects.get(key).is_some_and(|owner| owner.is_deleting))
            .cloned()
            .collect()
    }
}

/// What is to be done about one object.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Verdict {
    /// Nothing.
    Keep,
    /// All its owners are gone: it goes too. With `true` it first takes its own dependents.
    Delete { in_foreground: bool },
    /// Some of its owners are gone: their references go.
    DropOwners(Vec<OwnerReference>),
    /// It waits for its dependents: these are to be deleted.
    DeleteDependents(Vec<ObjectKey>),
    /// It is to leave its dependents behind: these lose their reference to it.
    OrphanDependents(Vec<ObjectKey>),
    /// What it waited for has happened: the finalizer goes.
    RemoveFinalizer(&'static str),
}

/// The finalizer of an owner that goes after its dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an owner that leaves its dependents behind.
pub(super) const ORPHAN: &str = "orphan";

/// Judges the object at `key`; `is_gone` tells whether an owner is known not to exist.
pub(super) fn judge(
    graph: &Graph,
    key: &ObjectKey,
    is_gone: impl Fn(&OwnerReference) -> bool,
) -> Verdict {
    let Some(entry) = graph.get(key) else {
        return Verdict::Keep;
    };
    if entry.awaits(ORPHAN) {
        let dependents = graph.dependents_of(&entry.uid);
        return if dependents.is_empty() {
            Verdict::RemoveFinalizer(ORPHAN)
        } else {
            Verdict::OrphanDependents(dependents)
        };
    }
    if entry.awaits(FOREGROUND) {
        return judge_foreground(graph, entry);
    }
    if entry.is_deleting || entry.owners.is_empty() {
        return Verdict::Keep;
    }
    let (gone, alive): (Vec<_>, Vec<_>) =
        entry.owners.iter().cloned().partition(|owner| is_gone(owner));
    let is_leaving = |owner: &OwnerReference| {
        graph.owner(&owner.uid).is_some_and(|owner| owner.awaits(FOREGROUND))
    };
    let solid = alive.iter().any(|owner| !is_leaving(owner));
    match (gone.is_empty(), solid) {
        (true, _) => Verdict::Keep,
        (false, true) => Verdict::DropOwners(alive),
        (false, false) => Verdict::Delete { in_foreground: alive.iter().any(is_leaving) },
    }
}

fn judge_foreground(graph: &Graph, entry: &Entry) -> Verdict {
    let dependents = graph.dependents_of(&entry.uid);
    let blocks = |key: &&ObjectKey| {
        let owners = graph.get(key).map(|dependent| dependent.owners.as_slice());
        owners
            .unwrap_or_default()
            .iter()
            .any(|owner| owner.uid == entry.uid && owner.block_owner_deletion == Some(true))
    };
    let may_stay = |key: &&ObjectKey| {
        // Another owner that stays keeps the dependent; it only loses this reference, later.
        let owners = graph.get(key).map(|dependent| dependent.owners.as_slice());
        owners.unwrap_or_default().iter().any(|owner| {
            owner.uid != entry.uid
                && graph.owner(&owner.uid).is_some_and(|owner| !owner.is_deleting)
        })
    };
    let doomed: Vec<_> = dependents
        .iter()
        .filter(|key| !may_stay(key))
        .filter(|key| graph.get(key).is_some_and(|dependent| !dependent.is_deleting))
        .cloned()
        .collect();
    if !doomed.is_empty() {
        return Verdict::DeleteDependents(doomed);
    }
    if dependents.iter().filter(|key| !may_stay(key)).any(|key| blocks(&key)) {
        Verdict::Keep
    } else {
        Verdict::RemoveFinalizer(FOREGROUND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ObjectKey {
        ObjectKey {
            api_version: "v1".into(),
            kind: "Pod".into(),
            namespace: "default".into(),
            name: name.into(),
        }
    }

    fn owned_by(uid: &str, owners: &[&str]) -> Entry {
        let owners = owners.iter().map(|owner| OwnerReference {
            uid: (*owner).into(),
            name: (*owner).into(),
            block_owner_deletion: Some(true),
            ..OwnerReference::default()
        });
        Entry { uid: uid.into(), owners: owners.collect(), ..Entry::default() }
    }

    fn leaving(uid: &str, finalizer: &str) -> Entry {
        Entry { is_deleting: true, finalizers: vec![finalizer.into()], ..owned_by(uid, &[]) }
    }

    fn judge_with_gone(graph: &Graph, name: &str, gone: &[&str]) -> Verdict {
        judge(graph, &key(name), |owner| gone.contains(&owner.uid.as_str()))
    }

    #[test]
    fn an_owner_that_waits_hears_of_dependents_that_it_has_let_go() {
        let mut graph = Graph::default();
        graph.put(&key("owner"), leaving("o", ORPHAN));
        graph.put(&key("dependent"), owned_by("d", &["o"]));
        let touched = graph.put(&key("dependent"), owned_by("d", &[]));
        assert_eq!(touched, [key("owner")]);
        assert_eq!(judge_with_gone(&graph, "owner", &[]), Verdict::RemoveFinalizer(ORPHAN));
    }

    #[test]
    fn an_object_goes_with_its_last_owner() {
        let mut graph = Graph::default();
        graph.put(&key("a"), owned_by("a", &[]));
        graph.put(&key("p"), owned_by("p", &["a", "b"]));
        assert_eq!(judge_with_gone(&graph, "p", &[]), Verdict::Keep);
        let Verdict::DropOwners(left) = judge_with_gone(&graph, "p", &["b"]) else {
            panic!("one owner is alive");
        };
        assert_eq!(left[0].uid, "a");
        let gone = judge_with_gone(&graph, "p", &["a", "b"]);
        assert_eq!(gone, Verdict::Delete { in_foreground: false });
        assert_eq!(judge_with_gone(&graph, "a", &[]), Verdict::Keep, "it has no owner to lose");
    }

    #[test]
    fn the_end_of_an_owner_is_news_for_its_dependents() {
        let mut graph = Graph::default();
        graph.put(&key("a"), owned_by("a", &[]));
        graph.put(&key("p"), owned_by("p", &["a"]));
        assert_eq!(graph.remove(&key("a")), [key("p")]);
        graph.put(&key("p"), owned_by("p", &[]));
        assert!(graph.dependents_of("a").is_empty());
    }

    #[test]
    fn a_new_object_of_an_old_name_does_not_inherit_dependents() {
        let mut graph = Graph::default();
        graph.put(&key("a"), owned_by("a", &[]));
        graph.put(&key("p"), owned_by("p", &["a"]));
        assert_eq!(graph.put(&key("a"), owned_by("a2", &[])), [key("p")]);
        assert!(graph.owner("a").is_none());
    }

    #[test]
    fn in_foreground_the_dependents_go_first() {
        let mut graph = Graph::default();
        graph.put(&key("a"), leaving("a", FOREGROUND));
        graph.put(&key("p"), owned_by("p", &["a"]));
        assert_eq!(judge_with_gone(&graph, "a", &[]), Verdict::DeleteDependents(vec![key("p")]));
        let deleting = Entry { is_deleting: true, ..owned_by("p", &["a"]) };
        assert_eq!(graph.put(&key("p"), deleting), [key("a"), key("p")]);
        assert_eq!(judge_with_gone(&graph, "a", &[]), Verdict::Keep, "it waits");
        assert_eq!(graph.remove(&key("p")), [key("a")]);
        assert_eq!(judge_with_gone(&graph, "a", &[]), Verdict::RemoveFinalizer(FOREGROUND));
    }

    #[test]
    fn orphans_lose_their_reference_and_stay() {
        let mut graph = Graph::default();
        graph.put(&key("a"), leaving("a", ORPHAN));
        graph.put(&key("p"), owned_by("p", &["a"]));
        assert_eq!(judge_with_gone(&graph, "a", &[]), Verdict::OrphanDependents(vec![key("p")]));
        graph.put(&key("p"), owned_by("p", &[]));
        assert_eq!(judge_with_gone(&graph, "a", &[]), Verdict::RemoveFinalizer(ORPHAN));
    }
}
