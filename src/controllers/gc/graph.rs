//! Who owns whom, as far as the caches know.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use crate::api::meta::{FOREGROUND, ORPHAN};

/// Where an object is: its row in the table of resources, namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ObjectKey {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl ObjectKey {
    /// Whether a reference to this object, as an owner, counts there: in its own namespace, or everywhere if
    /// it has none.
    fn may_own(&self, dependent: &Self) -> bool {
        self.namespace.is_empty() || self.namespace == dependent.namespace
    }
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
        // An owner that waits for its dependents hears of what they do, and of those that leave it.
        if let Some(known) = self.objects.get(key) {
            touched.extend(self.waiting_owners(key, known));
        }
        self.unlink(key);
        for owner in &entry.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(key.clone());
        }
        self.by_uid.insert(entry.uid.clone(), key.clone());
        if !entry.owners.is_empty() || entry.is_deleting {
            touched.insert(key.clone());
        }
        touched.extend(self.waiting_owners(key, &entry));
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
        touched.extend(self.waiting_owners(key, &entry));
        touched
    }

    pub(super) fn get(&self, key: &ObjectKey) -> Option<&Entry> {
        self.objects.get(key)
    }

    /// The object of that uid, if it may own the one at `key`.
    pub(super) fn owner(&self, key: &ObjectKey, uid: &str) -> Option<&Entry> {
        self.objects.get(self.by_uid.get(uid).filter(|owner| owner.may_own(key))?)
    }

    /// Whether the object of that uid is in another namespace than the one at `key`, and does not count there.
    pub(super) fn is_elsewhere(&self, key: &ObjectKey, uid: &str) -> bool {
        self.by_uid.get(uid).is_some_and(|owner| !owner.may_own(key))
    }

    pub(super) fn dependents_of(&self, uid: &str) -> Vec<ObjectKey> {
        let owner = self.by_uid.get(uid);
        let all = self.dependents.get(uid).into_iter().flatten();
        all.filter(|key| owner.is_none_or(|owner| owner.may_own(key))).cloned().collect()
    }

    /// Whether the owner of that uid, deleted in the foreground, stays as long as this object.
    fn blocks(&self, key: &ObjectKey, owner: &str) -> bool {
        let owners = self.get(key).map(|entry| entry.owners.as_slice()).unwrap_or_default();
        owners.iter().any(|one| one.uid == owner && one.block_owner_deletion == Some(true))
    }

    /// Whether the object waits, by way of others, for the one of that uid. If that waits for the
    /// object as well, the two are in a circle, and would wait for ever.
    fn waits_for(&self, key: &ObjectKey, uid: &str) -> bool {
        let (mut seen, mut next) = (BTreeSet::new(), vec![key.clone()]);
        while let Some(key) = next.pop() {
            let Some(entry) = self.get(&key).filter(|_| seen.insert(key.clone())) else { continue };
            if entry.uid == uid {
                return true;
            }
            if entry.awaits(FOREGROUND) {
                let dependents = self.dependents_of(&entry.uid).into_iter();
                next.extend(dependents.filter(|dependent| self.blocks(dependent, &entry.uid)));
            }
        }
        false
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

    fn waiting_owners(&self, key: &ObjectKey, entry: &Entry) -> Vec<ObjectKey> {
        let owners = entry.owners.iter().filter_map(|owner| self.by_uid.get(&owner.uid));
        owners
            .filter(|owner| owner.may_own(key))
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
        graph.owner(key, &owner.uid).is_some_and(|owner| owner.awaits(FOREGROUND))
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
    let may_stay = |key: &&ObjectKey| {
        // Another owner that stays keeps the dependent; it only loses this reference, later.
        let owners = graph.get(key).map(|dependent| dependent.owners.as_slice());
        owners.unwrap_or_default().iter().any(|owner| {
            owner.uid != entry.uid
                && graph.owner(key, &owner.uid).is_some_and(|owner| !owner.is_deleting)
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
    let is_waited_for =
        |key: &ObjectKey| graph.blocks(key, &entry.uid) && !graph.waits_for(key, &entry.uid);
    if dependents.iter().filter(|key| !may_stay(key)).any(is_waited_for) {
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
        assert!(graph.owner(&key("p"), "a").is_none());
    }

    #[test]
    fn an_owner_has_no_dependents_in_other_namespaces() {
        let at =
            |namespace: &str, name: &str| ObjectKey { namespace: namespace.into(), ..key(name) };
        let mut graph = Graph::default();
        let dependents = [at("", "cluster"), at("default", "own"), at("other", "foreign")];
        for dependent in &dependents {
            graph.put(dependent, owned_by(&dependent.name, &["a"]));
        }
        graph.put(&key("a"), leaving("a", FOREGROUND));
        let own = Verdict::DeleteDependents(vec![dependents[1].clone()]);
        assert_eq!(judge_with_gone(&graph, "a", &[]), own);
        assert!(graph.owner(&dependents[1], "a").is_some());
        assert!(graph.owner(&dependents[0], "a").is_none(), "nor one without a namespace");
        assert!(graph.owner(&dependents[2], "a").is_none(), "it is not known there");
        graph.remove(&dependents[1]);
        assert_eq!(judge_with_gone(&graph, "a", &[]), Verdict::RemoveFinalizer(FOREGROUND));
        // What has no namespace owns everywhere.
        let mut graph = Graph::default();
        for dependent in &dependents {
            graph.put(dependent, owned_by(&dependent.name, &["a"]));
        }
        graph.put(&at("", "a"), leaving("a", ORPHAN));
        let orphans = judge(&graph, &at("", "a"), |_| false);
        assert_eq!(orphans, Verdict::OrphanDependents(dependents.to_vec()));
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

    /// Goal: a circle of owners goes as a line does. Method: plays the server and the collector: what is
    /// deleted gets the finalizer, and goes when it has lost it.
    #[test]
    fn owners_in_a_circle_do_not_wait_for_each_other() {
        for names in [&["a"][..], &["a", "b"], &["a", "b", "c"], &["a", "b", "c", "d"]] {
            let mut graph = Graph::default();
            let owner = |at: usize| names[(at + names.len() - 1) % names.len()];
            for (at, name) in names.iter().enumerate() {
                graph.put(&key(name), owned_by(name, &[owner(at)]));
            }
            // One that waits within the circle for something outside of it keeps its owner waiting.
            graph.put(&key("z"), owned_by("z", &["a"]));
            let outside = Entry { is_deleting: true, ..owned_by("z", &["a"]) };
            let mut entry = graph.get(&key("a")).unwrap().clone();
            entry.is_deleting = true;
            entry.finalizers = vec![FOREGROUND.into()];
            let mut touched = graph.put(&key("a"), entry);
            let mut has_waited = false;
            for _ in 0..50 {
                let Some(next) = touched.pop() else {
                    if graph.get(&key("z")).is_none() {
                        break;
                    }
                    has_waited = graph.get(&key("a")).is_some();
                    touched = graph.remove(&key("z"));
                    continue;
                };
                match judge(&graph, &next, |_| false) {
                    Verdict::DeleteDependents(dependents) => {
                        for dependent in dependents {
                            let entry = match dependent.name.as_str() {
                                "z" => outside.clone(),
                                _ => Entry {
                                    is_deleting: true,
                                    finalizers: vec![FOREGROUND.into()],
                                    ..graph.get(&dependent).unwrap().clone()
                                },
                            };
                            touched.extend(graph.put(&dependent, entry));
                        }
                    }
                    Verdict::RemoveFinalizer(_) => touched.extend(graph.remove(&next)),
                    _ => {}
                }
            }
            assert!(has_waited, "{names:?}: it did not wait for what is outside");
            let left: Vec<_> =
                names.iter().filter(|name| graph.get(&key(name)).is_some()).collect();
            assert!(left.is_empty(), "{names:?}: these wait for ever: {left:?}");
        }
    }

    #[test]
    fn an_owner_that_waits_hears_of_the_last_dependent_that_leaves_it() {
        let mut graph = Graph::default();
        let leaving =
            Entry { is_deleting: true, finalizers: vec![ORPHAN.into()], ..owned_by("owner", &[]) };
        graph.put(&key("owner"), leaving);
        graph.put(&key("pod"), owned_by("pod", &["owner"]));
        assert_eq!(graph.put(&key("pod"), owned_by("pod", &[])), [key("owner")]);
        assert_eq!(judge(&graph, &key("owner"), |_| false), Verdict::RemoveFinalizer(ORPHAN));
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
