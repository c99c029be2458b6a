//! What a worker needs from a Pod's spec, read once.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, EphemeralContainer, Pod};

use crate::agent::pod::names;
use crate::api::{quantity, unique_pod};

/// Annotation that gives each container a fate of its own.
const FATE_ANNOTATION: &str = "edgeorc.io/fate";
/// Annotation whose value `fresh` makes a fresh instance for each HTTP request.
const INSTANCES_ANNOTATION: &str = "edgeorc.io/instances";
/// Annotation that names the ConfigMap whose values `wasi:config` answers.
pub(crate) const CONFIG_ANNOTATION: &str = "edgeorc.io/config";
/// Annotation that lists the buckets `wasi:keyvalue` may open, with commas.
pub(crate) const KEYVALUE_ANNOTATION: &str = "edgeorc.io/keyvalue";
/// Kubernetes' default of `terminationGracePeriodSeconds`.
const GRACE_DEFAULT: Duration = Duration::from_secs(30);
/// Port of an HTTP component that names none.
const HTTP_PORT_DEFAULT: u16 = 8080;

/// `spec.restartPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

/// Who is started again when a container ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// All of the pod's containers.
    Pod,
    /// That container alone, as in Kubernetes.
    Container,
}

/// What a container is to its pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: starts before and ends after the mains.
    Sidecar,
    /// One of `spec.containers`.
    Main,
    /// One of `spec.ephemeralContainers`: runs once, and nothing else depends on it.
    Ephemeral,
}

/// `imagePullPolicy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

/// One container of the plan.
#[derive(Debug, Clone)]
pub(crate) struct ContainerPlan {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) role: Role,
    pub(crate) pull: PullPolicy,
    pub(crate) http_port: u16,
    pub(crate) memory_bytes_max: Option<u64>,
    pub(crate) cpu_millis_max: Option<u64>,
    /// What it requests, which is its limit if it says only that.
    pub(crate) cpu_millis: Option<u64>,
    pub(crate) spec: Container,
    /// The container that an ephemeral one is to look at.
    pub(crate) target: Option<String>,
}

/// The pod as a worker sees it.
#[derive(Debug, Clone)]
pub(crate) struct PodPlan {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) hostname: String,
    pub(crate) restart_policy: RestartPolicy,
    pub(crate) fate: Fate,
    pub(crate) grace: Duration,
    pub(crate) fresh_instance_per_request: bool,
    /// It runs only while servers hear this node.
    pub(crate) is_fenced: bool,
    /// Name of the ConfigMap with the values of `wasi:config`.
    pub(crate) config: Option<String>,
    /// Buckets that were granted.
    pub(crate) buckets: Option<BTreeSet<String>>,
    /// Init containers and sidecars in the order of the spec, then the mains, then ephemeral ones as
    /// they came.
    pub(crate) containers: Vec<ContainerPlan>,
}

impl PodPlan {
    /// Reads the plan from a pod as the API server stores it.
    pub(crate) fn read(pod: &Pod) -> Self {
        let meta = &pod.metadata;
        let annotation = |key: &str| {
            meta.annotations.as_ref().and_then(|a| a.get(key)).map_or("", String::as_str)
        };
        let name = meta.name.clone().unwrap_or_default();
        let spec = pod.spec.clone().unwrap_or_default();
        let inits = spec.init_containers.into_iter().flatten().map(|c| {
            let is_sidecar = c.restart_policy.as_deref() == Some("Always");
            container(c, if is_sidecar { Role::Sidecar } else { Role::Init })
        });
        let mains = spec.containers.into_iter().map(|c| container(c, Role::Main));
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            hostname: names::hostname(pod),
            name,
            uid: meta.uid.clone().unwrap_or_default(),
            restart_policy: match spec.restart_policy.as_deref() {
                Some("Never") => RestartPolicy::Never,
                Some("OnFailure") => RestartPolicy::OnFailure,
                _ => RestartPolicy::Always,
            },
            fate: if annotation(FATE_ANNOTATION) == "container" {
                Fate::Container
            } else {
                Fate::Pod
            },
            grace: spec.termination_grace_period_seconds.map_or(GRACE_DEFAULT, seconds),
            is_fenced: unique_pod::is_fenced(pod),
            fresh_instance_per_request: annotation(INSTANCES_ANNOTATION) == "fresh",
            config: config_name(pod).map(str::to_owned),
            buckets: Some(annotation(KEYVALUE_ANNOTATION))
                .filter(|list| !list.is_empty())
                .map(|list| list.split(',').map(|name| name.trim().to_owned()).collect()),
            containers: inits.chain(mains).chain(ephemeral(pod)).collect(),
        }
    }

    /// The most all containers may have together: the sum of their limits, if each has one.
    pub(crate) fn memory_bytes_max(&self) -> Option<u64> {
        self.containers
            .iter()
            .filter(|c| c.role != Role::Ephemeral)
            .map(|c| c.memory_bytes_max)
            .try_fold(0_u64, |sum, limit| Some(sum.saturating_add(limit?)))
            .filter(|sum| *sum > 0)
    }
}

/// The ConfigMap that holds the values of `wasi:config` for `pod`.
pub(crate) fn config_name(pod: &Pod) -> Option<&str> {
    let annotations = pod.metadata.annotations.as_ref()?;
    annotations.get(CONFIG_ANNOTATION).map(String::as_str).filter(|name| !name.is_empty())
}

/// How long a pod that is being deleted has left from the moment that is seen.
pub(crate) fn deletion_grace(pod: &Pod) -> Option<Duration> {
    pod.metadata.deletion_timestamp.as_ref()?;
    let spec = pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
    Some(pod.metadata.deletion_grace_period_seconds.or(spec).map_or(GRACE_DEFAULT, seconds))
}

/// Whether the pod has ended for good, as far as the API knows.
pub(crate) fn is_terminal(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"))
}

/// Bytes that a quantity says; `None` if it says nothing sensible.
pub(crate) fn bytes(quantity: &str) -> Option<u64> {
    quantity::parse_bytes(quantity).ok().and_then(|b| u64::try_from(b).ok())
}

/// Thousandths of a core that a quantity says; `None` if it says nothing sensible.
pub(crate) fn cpu_millis(quantity: &str) -> Option<u64> {
    quantity::parse_cpu_millis(quantity).ok().and_then(|m| u64::try_from(m).ok())
}

/// Seconds of the API as a duration; negative ones are none.
pub(crate) fn seconds(value: i64) -> Duration {
    Duration::from_secs(u64::try_from(value).unwrap_or(0))
}

/// The plans of the pod's ephemeral containers.
pub(crate) fn ephemeral(pod: &Pod) -> impl Iterator<Item = ContainerPlan> + '_ {
    let spec = pod.spec.as_ref().and_then(|spec| spec.ephemeral_containers.as_ref());
    spec.into_iter().flatten().map(|one| {
        let target = one.target_container_name.clone().filter(|name| !name.is_empty());
        ContainerPlan { target, ..container(plain(one.clone()), Role::Ephemeral) }
    })
}

/// An ephemeral container as any other; what it has of ports, probes and limits is refused before.
fn plain(one: EphemeralContainer) -> Container {
    Container {
        name: one.name,
        image: one.image,
        image_pull_policy: one.image_pull_policy,
        command: one.command,
        args: one.args,
        env: one.env,
        env_from: one.env_from,
        working_dir: one.working_dir,
        volume_mounts: one.volume_mounts,
        volume_devices: one.volume_devices,
        security_context: one.security_context,
        stdin: one.stdin,
        stdin_once: one.stdin_once,
        tty: one.tty,
        termination_message_path: one.termination_message_path,
        termination_message_policy: one.termination_message_policy,
        ..Container::default()
    }
}

/// How an image is pulled by a policy of the spec.
pub(crate) fn pull_policy(policy: Option<&str>, image: &str) -> PullPolicy {
    match policy {
        Some("Always") => PullPolicy::Always,
        Some("Never") => PullPolicy::Never,
        Some(_) => PullPolicy::IfNotPresent,
        None if is_latest(image) => PullPolicy::Always,
        None => PullPolicy::IfNotPresent,
    }
}

impl ContainerPlan {
    /// Whether the pod names another image for the container by now; takes that over.
    pub(crate) fn take_image(&mut self, pod: &Pod) -> bool {
        let spec = pod.spec.iter();
        let specs =
            spec.flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
        let spec = specs.filter(|_| self.role != Role::Ephemeral).find(|c| c.name == self.name);
        let Some(spec) = spec.filter(|c| c.image.as_deref().unwrap_or_default() != self.image)
        else {
            return false;
        };
        self.image = spec.image.clone().unwrap_or_default();
        self.pull = pull_policy(spec.image_pull_policy.as_deref(), &self.image);
        self.spec.image.clone_from(&spec.image);
        true
    }
}

fn container(spec: Container, role: Role) -> ContainerPlan {
    let image = spec.image.clone().unwrap_or_default();
    let resources = spec.resources.as_ref();
    let limit = |key: &str| resources.and_then(|r| r.limits.as_ref()).and_then(|l| l.get(key));
    let request = |key: &str| resources.and_then(|r| r.requests.as_ref()).and_then(|l| l.get(key));
    ContainerPlan {
        name: spec.name.clone(),
        role,
        pull: pull_policy(spec.image_pull_policy.as_deref(), &image),
        http_port: spec
            .ports
            .iter()
            .flatten()
            .find_map(|p| u16::try_from(p.container_port).ok())
            .unwrap_or(HTTP_PORT_DEFAULT),
        memory_bytes_max: limit("memory").and_then(|q| bytes(&q.0)),
        cpu_millis_max: limit("cpu").and_then(|q| cpu_millis(&q.0)),
        cpu_millis: request("cpu").or(limit("cpu")).and_then(|q| cpu_millis(&q.0)),
        image,
        spec,
        target: None,
    }
}

fn is_latest(image: &str) -> bool {
    let name = image.rsplit('/').next().unwrap_or(image);
    !name.contains('@') && name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(pod: serde_json::Value) -> PodPlan {
        PodPlan::read(&serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn what_guests_are_granted_is_read_from_annotations() {
        let plan = plan(serde_json::json!({"metadata": {"annotations": {
            "edgeorc.io/instances": "fresh",
            "edgeorc.io/config": "colors",
            "edgeorc.io/keyvalue": "default, cache",
        }}}));
        assert!(plan.fresh_instance_per_request);
        assert_eq!(plan.config.as_deref(), Some("colors"));
        let buckets = plan.buckets.unwrap();
        assert_eq!(buckets.iter().map(String::as_str).collect::<Vec<_>>(), ["cache", "default"]);
    }

    #[test]
    fn nothing_is_granted_by_default() {
        let plan = plan(serde_json::json!({"metadata": {"annotations": {
            "edgeorc.io/config": "", "edgeorc.io/keyvalue": "",
        }}}));
        assert_eq!((plan.config, plan.buckets), (None, None));
        assert!(!plan.fresh_instance_per_request);
    }

    #[test]
    fn a_container_weighs_what_it_requests_or_else_its_limit() {
        let plan = plan(serde_json::json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "1"}}},
            {"name": "b", "resources": {"limits": {"cpu": "1"}}},
            {"name": "c"},
        ]}}));
        let weights: Vec<_> = plan.containers.iter().map(|c| c.cpu_millis).collect();
        assert_eq!(weights, [Some(100), Some(1000), None]);
    }
}
