//! Keeps the table of policies up to date, touching only what a change is about.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::{Deserialize, Serialize};

use super::facts::PodFacts;
use super::rules::{Labels, Policy};
use super::table::{Directions, PodRules, Policies};

/// Namespace and name.
type Key = (String, String);

/// What policies are judged by, as it can be written down: a node that starts without a server goes
/// on with what it knew last.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct KnownPolicies {
    policies: Vec<NetworkPolicy>,
    pods: Vec<PodFacts>,
    namespaces: BTreeMap<String, Labels>,
}

impl KnownPolicies {
    /// Whether there is no policy in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }

    /// The table by it, for the node `me`.
    #[must_use]
    pub fn table(&self, me: &str) -> Policies {
        let mut compiler = PolicyCompiler::new(me);
        let policies: Vec<_> = self.policies.iter().cloned().map(Arc::new).collect();
        compiler.set_policies(&policies);
        compiler.namespaces = Arc::new(self.namespaces.clone());
        for facts in &self.pods {
            compiler.put_pod(Arc::new(facts.clone()));
        }
        compiler.snapshot()
    }
}

/// A pod of this node with the policies that select it.
#[derive(Debug)]
struct LocalPod {
    facts: Arc<PodFacts>,
    policies: BTreeMap<String, Arc<Policy>>,
}

impl LocalPod {
    fn rules(&self) -> Arc<PodRules> {
        let of = |is_about: fn(&Policy) -> bool| {
            self.policies.values().filter(|policy| is_about(policy)).cloned().collect()
        };
        Arc::new(PodRules {
            ingress: of(|policy| policy.ingress.is_some()),
            egress: of(|policy| policy.egress.is_some()),
        })
    }
}

/// See the module. Fed with everything there is; what has not changed is told by its pointer.
#[derive(Debug)]
pub struct PolicyCompiler {
    me: String,
    policies: BTreeMap<Key, (Arc<NetworkPolicy>, Arc<Policy>)>,
    seen_pods: BTreeMap<Key, (Arc<Pod>, Option<Arc<PodFacts>>)>,
    seen_namespaces: Vec<Arc<Namespace>>,
    namespaces: Arc<BTreeMap<String, Labels>>,
    isolating: Arc<BTreeMap<String, Directions>>,
    pods: BTreeMap<Arc<str>, Arc<PodFacts>>,
    /// Of this node, by namespace and uid.
    local: BTreeMap<Key, LocalPod>,
    rules: BTreeMap<Arc<str>, Arc<PodRules>>,
    /// How often a policy was matched with a pod.
    matched: u64,
}

impl PolicyCompiler {
    /// For the node `me`. Knows nothing yet.
    #[must_use]
    pub fn new(me: &str) -> Self {
        Self {
            me: me.to_owned(),
            policies: BTreeMap::new(),
            seen_pods: BTreeMap::new(),
            seen_namespaces: Vec::new(),
            namespaces: Arc::default(),
            isolating: Arc::default(),
            pods: BTreeMap::new(),
            local: BTreeMap::new(),
            rules: BTreeMap::new(),
            matched: 0,
        }
    }

    /// The table by everything there is now; `None` if it is the one of before.
    #[must_use]
    pub fn update(
        &mut self,
        policies: &[Arc<NetworkPolicy>],
        pods: &[Arc<Pod>],
        namespaces: &[Arc<Namespace>],
    ) -> Option<Policies> {
        let is_other = self.set_namespaces(namespaces);
        let is_other = self.set_policies(policies) || is_other;
        let is_other = self.set_pods(pods) || is_other;
        is_other.then(|| self.snapshot())
    }

    /// All of it, to be written down.
    #[must_use]
    pub fn known(&self) -> KnownPolicies {
        KnownPolicies {
            policies: self
                .policies
                .values()
                .map(|(policy, _)| NetworkPolicy::clone(policy))
                .collect(),
            pods: self.pods.values().map(|facts| PodFacts::clone(facts)).collect(),
            namespaces: BTreeMap::clone(&self.namespaces),
        }
    }

    /// How often a policy was matched with a pod so far: what a change costs.
    #[must_use]
    pub fn matched(&self) -> u64 {
        self.matched
    }

    fn snapshot(&self) -> Policies {
        let mut by_ip: BTreeMap<Arc<str>, BTreeMap<IpAddr, Arc<PodFacts>>> = BTreeMap::new();
        for facts in self.pods.values() {
            let Some(node) = &facts.node else { continue };
            for ip in &facts.ips {
                if !by_ip.contains_key(node.as_str()) {
                    by_ip.insert(node.as_str().into(), BTreeMap::new());
                }
                if let Some(pods) = by_ip.get_mut(node.as_str()) {
                    pods.insert(*ip, Arc::clone(facts));
                }
            }
        }
        Policies {
            pods: self.pods.clone(),
            by_ip,
            namespaces: Arc::clone(&self.namespaces),
            rules: self.rules.clone(),
            isolating: Arc::clone(&self.isolating),
        }
    }

    fn set_namespaces(&mut self, namespaces: &[Arc<Namespace>]) -> bool {
        let is_same = self.seen_namespaces.len() == namespaces.len()
            && self.seen_namespaces.iter().zip(namespaces).all(|(a, b)| Arc::ptr_eq(a, b));
        if is_same {
            return false;
        }
        self.seen_namespaces = namespaces.to_vec();
        let labels = namespaces.iter().filter_map(|namespace| {
            let meta = &namespace.metadata;
            Some((meta.name.clone()?, meta.labels.clone().unwrap_or_default()))
        });
        let labels: BTreeMap<String, Labels> = labels.collect();
        let is_other = *self.namespaces != labels;
        if is_other {
            self.namespaces = Arc::new(labels);
        }
        is_other
    }

    fn set_policies(&mut self, policies: &[Arc<NetworkPolicy>]) -> bool {
        let mut gone = std::mem::take(&mut self.policies);
        let mut touched = Vec::new();
        for object in policies {
            let meta = &object.metadata;
            let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else { continue };
            let key = (namespace.clone(), name.clone());
            let known = gone.remove(&key);
            let policy = match known {
                Some((seen, policy)) if Arc::ptr_eq(&seen, object) => policy,
                known => {
                    let policy = Arc::new(Policy::read(object));
                    // Other annotations are no other policy.
                    match known.map(|(_, policy)| policy).filter(|before| **before == *policy) {
                        Some(before) => before,
                        None => {
                            touched.push((key.clone(), Some(Arc::clone(&policy))));
                            policy
                        }
                    }
                }
            };
            self.policies.insert(key, (Arc::clone(object), policy));
        }
        touched.extend(gone.into_keys().map(|key| (key, None)));
        if touched.is_empty() {
            return false;
        }
        self.set_isolating();
        for (key, policy) in touched {
            self.put_policy(&key, policy.as_ref());
        }
        true
    }

    fn set_isolating(&mut self) {
        let mut isolating: BTreeMap<String, Directions> = BTreeMap::new();
        for ((namespace, _), (_, policy)) in &self.policies {
            let directions = isolating.entry(namespace.clone()).or_default();
            directions.has_ingress |= policy.ingress.is_some();
            directions.has_egress |= policy.egress.is_some();
        }
        self.isolating = Arc::new(isolating);
    }

    /// Matches one policy with the pods of its namespace.
    fn put_policy(&mut self, (namespace, name): &Key, policy: Option<&Arc<Policy>>) {
        let from = (namespace.clone(), String::new());
        for ((of, uid), pod) in self.local.range_mut(from..) {
            if of != namespace {
                break;
            }
            let selecting = policy.filter(|policy| policy.selects(&pod.facts.labels));
            self.matched += u64::from(policy.is_some());
            let is_other = match selecting {
                Some(policy) => {
                    pod.policies.insert(name.clone(), Arc::clone(policy));
                    true
                }
                None => pod.policies.remove(name).is_some(),
            };
            if is_other {
                keep_rules(&mut self.rules, uid, pod);
            }
        }
    }

    fn set_pods(&mut self, pods: &[Arc<Pod>]) -> bool {
        let mut gone = std::mem::take(&mut self.seen_pods);
        let mut is_other = false;
        let mut fresh = Vec::new();
        for object in pods {
            let meta = &object.metadata;
            let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else { continue };
            let key = (namespace.clone(), name.clone());
            let facts = match gone.remove(&key) {
                Some((seen, facts)) if Arc::ptr_eq(&seen, object) => facts,
                known => {
                    let facts = PodFacts::of(object).map(Arc::new);
                    let before = known.and_then(|(_, facts)| facts);
                    if before == facts {
                        before
                    } else {
                        if let Some(before) = before {
                            self.remove_pod(&before);
                        }
                        fresh.extend(facts.clone());
                        is_other = true;
                        facts
                    }
                }
            };
            self.seen_pods.insert(key, (Arc::clone(object), facts));
        }
        for facts in gone.into_values().filter_map(|(_, facts)| facts) {
            self.remove_pod(&facts);
            is_other = true;
        }
        for facts in fresh {
            self.put_pod(facts);
        }
        is_other
    }

    fn remove_pod(&mut self, facts: &PodFacts) {
        // Another pod may have the uid by now: a mirror is made anew under another name.
        if self.pods.get(facts.uid.as_str()).is_some_and(|known| **known == *facts) {
            self.pods.remove(facts.uid.as_str());
            self.rules.remove(facts.uid.as_str());
            self.local.remove(&(facts.namespace.clone(), facts.uid.clone()));
        }
    }

    /// Matches one pod with the policies of its namespace.
    fn put_pod(&mut self, facts: Arc<PodFacts>) {
        let uid: Arc<str> = facts.uid.as_str().into();
        self.pods.insert(uid, Arc::clone(&facts));
        if facts.node.as_deref() != Some(self.me.as_str()) {
            return;
        }
        let mut selecting = BTreeMap::new();
        let from = (facts.namespace.clone(), String::new());
        for ((of, name), (_, policy)) in self.policies.range(from..) {
            if *of != facts.namespace {
                break;
            }
            self.matched += 1;
            if policy.selects(&facts.labels) {
                selecting.insert(name.clone(), Arc::clone(policy));
            }
        }
        let key = (facts.namespace.clone(), facts.uid.clone());
        let pod = LocalPod { facts, policies: selecting };
        keep_rules(&mut self.rules, &key.1, &pod);
        self.local.insert(key, pod);
    }
}

fn keep_rules(rules: &mut BTreeMap<Arc<str>, Arc<PodRules>>, uid: &str, pod: &LocalPod) {
    if pod.policies.is_empty() {
        rules.remove(uid);
    } else {
        rules.insert(uid.into(), pod.rules());
    }
}
