//! Environment and arguments of a container.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, Pod, ResourceFieldSelector, Secret,
};

use crate::agent::devices::GivenDevice;
use crate::agent::image::ImageConfig;
use crate::agent::pod::names;
use crate::agent::pod::plan::{bytes, cpu_millis};
use crate::agent::pod::volumes::TokenKey;
use crate::agent::pod::volumes::claim::Claim;
use crate::config::{DeviceSettings, HostPath};

/// Why a container's configuration cannot be made; the text is for the container's status.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConfigError {
    /// A ConfigMap or Secret that is not optional does not exist. Retry: it may come.
    #[error("{kind} \"{name}\" not found")]
    NoObject { kind: &'static str, name: String },
    /// It exists without the key. Retry: it may come.
    #[error("couldn't find key {key} in {kind} {name}")]
    NoKey { kind: &'static str, name: String, key: String },
    /// The field is none that a container may ask for, or the volume none this node has. Give up.
    #[error("{0}")]
    Unsupported(String),
    /// Something that the pod names is not there yet, or not as it must be. Retry: it may come.
    #[error("{0}")]
    Unavailable(String),
    /// The API could not be asked, and there is no copy on this node. Retry.
    #[error("cannot read {kind} \"{name}\": {reason}")]
    Unread { kind: &'static str, name: String, reason: String },
    /// The node's disk refused. Retry.
    #[error("cannot write the container's files: {0}")]
    Disk(#[from] std::io::Error),
}

/// What a pod's containers can refer to.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// `None` is "looked for and not there".
    pub(crate) config_maps: BTreeMap<String, Option<ConfigMap>>,
    pub(crate) secrets: BTreeMap<String, Option<Secret>>,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) host_ips: Vec<IpAddr>,
    /// Variables of the Services that the pod wants links to.
    pub(crate) service_env: Vec<(String, String)>,
    /// What a container without limits may use: thousandths of a core, bytes.
    pub(crate) allocatable: (u64, u64),
    /// Bytes of disk that a container without limits may use.
    pub(crate) ephemeral_bytes: u64,
    /// Tokens of the pod's service account.
    pub(crate) tokens: BTreeMap<TokenKey, String>,
    /// By the claim's name.
    pub(crate) claims: BTreeMap<String, Claim>,
    /// Devices that the pod's claims have, by the name that containers use.
    pub(crate) given: BTreeMap<String, Vec<GivenDevice>>,
    /// Devices of this machine.
    pub(crate) devices: Arc<[DeviceSettings]>,
    /// What the node's configuration allows pods to mount of the host.
    pub(crate) host_paths: Arc<[HostPath]>,
    /// Images that are volumes, by the volume's name.
    pub(crate) images: BTreeMap<String, MountedImage>,
}

/// An image that is a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountedImage {
    /// The folder with its files.
    pub(crate) folder: PathBuf,
    /// Name and digest, for the status.
    pub(crate) id: String,
}

/// The environment of `container`: services, the pod's identity, `envFrom`, `env`; later ones win.
pub(crate) fn environment(
    pod: &Pod,
    container: &Container,
    sources: &Sources,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut env = Env::default();
    for (name, value) in &sources.service_env {
        env.set(name, value.clone());
    }
    for (name, path) in [
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("NODE_NAME", "spec.nodeName"),
        ("POD_IP", "status.podIP"),
    ] {
        env.set(name, field(pod, path, sources)?);
    }
    env.set("HOSTNAME", names::shown_hostname(pod));
    if let Some(folder) = container.working_dir.as_ref().filter(|folder| !folder.is_empty()) {
        env.set("PWD", folder.clone());
    }
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or("");
        if let Some(wanted) = &from.config_map_ref {
            let map = object(&sources.config_maps, "configmap", &wanted.name, wanted.optional)?;
            for (key, value) in map.into_iter().flat_map(|m| m.data.iter().flatten()) {
                env.set_if_valid(&format!("{prefix}{key}"), value.clone());
            }
        }
        if let Some(wanted) = &from.secret_ref {
            let secret = object(&sources.secrets, "secret", &wanted.name, wanted.optional)?;
            for (key, value) in secret.into_iter().flat_map(|s| s.data.iter().flatten()) {
                let value = String::from_utf8_lossy(&value.0).into_owned();
                env.set_if_valid(&format!("{prefix}{key}"), value);
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (Some(value), _) => Some(expand(value, &env.0)),
            (None, Some(source)) => sourced(pod, container, source, sources)?,
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            env.set(&var.name, value);
        }
    }
    // It is kept as long as its container.
    env.0.shrink_to_fit();
    Ok(env.0)
}

/// `argv`, as Kubernetes has it: `command` takes the place of the image's entry point and its arguments,
/// `args` that of its arguments alone. Without a first word, the container's name is `argv[0]`.
pub(crate) fn arguments(
    container: &Container,
    env: &[(String, String)],
    image: &ImageConfig,
) -> Vec<String> {
    let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
        words.iter().flatten().map(|word| expand(word, env)).collect()
    };
    let (command, args) = (expanded(&container.command), expanded(&container.args));
    let (mut argv, rest) = match (command.is_empty(), args.is_empty()) {
        (false, _) => (command, args),
        (true, false) => (image.entrypoint.clone(), args),
        // Without an entry point, the arguments begin with the program.
        (true, true) => ([image.entrypoint.as_slice(), &image.cmd].concat(), Vec::new()),
    };
    if argv.is_empty() {
        argv.push(container.name.clone());
    }
    argv.extend(rest);
    argv
}

/// The variables of a container, and those of its image that it does not set itself.
pub(crate) fn with_image(
    mut env: Vec<(String, String)>,
    image: &ImageConfig,
) -> Vec<(String, String)> {
    let folder = Some(image.working_dir.as_str()).filter(|folder| !matches!(*folder, "" | "/"));
    let folder = folder.map(|folder| ("PWD", folder));
    let variables = image.env.iter().filter_map(|variable| variable.split_once('='));
    for (name, value) in folder.into_iter().chain(variables) {
        if !name.is_empty() && !env.iter().any(|(had, _)| had == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    env.shrink_to_fit();
    env
}

#[derive(Default)]
struct Env(Vec<(String, String)>);

impl Env {
    fn set(&mut self, name: &str, value: String) {
        match self.0.iter_mut().find(|(had, _)| had == name) {
            Some(entry) => entry.1 = value,
            None => self.0.push((name.to_owned(), value)),
        }
    }

    /// Keys of a ConfigMap that cannot be names of variables are skipped, see [`skipped`].
    fn set_if_valid(&mut self, name: &str, value: String) {
        if is_env_name(name) {
            self.set(name, value);
        }
    }
}

/// Whether Kubernetes takes the name: every printable ASCII character but `=`.
fn is_env_name(name: &str) -> bool {
    let is_allowed = |c: char| matches!(c, ' '..='~') && c != '=';
    !name.is_empty() && name.chars().all(is_allowed)
}

/// What is to be told of keys of `envFrom` that cannot be names of variables: kubelet's words.
pub(crate) fn skipped(pod: &Pod, container: &Container, sources: &Sources) -> Vec<String> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut told = Vec::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or("");
        let map = from.config_map_ref.as_ref().map(|wanted| {
            let map = sources.config_maps.get(&wanted.name).and_then(Option::as_ref);
            let keys = map.and_then(|m| m.data.as_ref()).into_iter().flat_map(BTreeMap::keys);
            ("configMap", &wanted.name, keys.collect::<Vec<_>>())
        });
        let secret = from.secret_ref.as_ref().map(|wanted| {
            let secret = sources.secrets.get(&wanted.name).and_then(Option::as_ref);
            let keys = secret.and_then(|s| s.data.as_ref()).into_iter().flat_map(BTreeMap::keys);
            ("secret", &wanted.name, keys.collect())
        });
        for (kind, name, mut keys) in map.into_iter().chain(secret) {
            keys.retain(|key| !is_env_name(&format!("{prefix}{key}")));
            if !keys.is_empty() {
                let keys = keys.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                told.push(format!(
                    "Keys [{keys}] from the EnvFrom {kind} {namespace}/{name} were skipped since \
                     they are considered invalid environment variable names."
                ));
            }
        }
    }
    told
}

fn sourced(
    pod: &Pod,
    container: &Container,
    source: &EnvVarSource,
    sources: &Sources,
) -> Result<Option<String>, ConfigError> {
    if let Some(wanted) = &source.field_ref {
        return field(pod, &wanted.field_path, sources).map(Some);
    }
    if let Some(wanted) = &source.config_map_key_ref {
        let map = object(&sources.config_maps, "configmap", &wanted.name, wanted.optional)?;
        let value = map.and_then(|m| m.data.as_ref()).and_then(|d| d.get(&wanted.key)).cloned();
        return key(value, "ConfigMap", &wanted.name, &wanted.key, wanted.optional);
    }
    if let Some(wanted) = &source.secret_key_ref {
        let secret = object(&sources.secrets, "secret", &wanted.name, wanted.optional)?;
        let value = secret
            .and_then(|s| s.data.as_ref())
            .and_then(|d| d.get(&wanted.key))
            .map(|v| String::from_utf8_lossy(&v.0).into_owned());
        return key(value, "Secret", &wanted.name, &wanted.key, wanted.optional);
    }
    if let Some(wanted) = &source.resource_field_ref {
        return resource(pod, container, wanted, sources).map(Some);
    }
    Err(ConfigError::Unsupported("this source of an environment variable is not supported".into()))
}

fn object<'a, T>(
    known: &'a BTreeMap<String, Option<T>>,
    kind: &'static str,
    name: &str,
    is_optional: Option<bool>,
) -> Result<Option<&'a T>, ConfigError> {
    match known.get(name).and_then(Option::as_ref) {
        Some(found) => Ok(Some(found)),
        None if is_optional == Some(true) => Ok(None),
        None => Err(ConfigError::NoObject { kind, name: name.to_owned() }),
    }
}

fn key(
    value: Option<String>,
    kind: &'static str,
    name: &str,
    key: &str,
    is_optional: Option<bool>,
) -> Result<Option<String>, ConfigError> {
    if value.is_none() && is_optional != Some(true) {
        return Err(ConfigError::NoKey { kind, name: name.to_owned(), key: key.to_owned() });
    }
    Ok(value)
}

/// The value at a field path of the downward API.
fn field(pod: &Pod, path: &str, sources: &Sources) -> Result<String, ConfigError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    if let Some(key) = subscript(path, "metadata.labels") {
        return Ok(text(meta.labels.as_ref().and_then(|l| l.get(key))));
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Ok(text(meta.annotations.as_ref().and_then(|a| a.get(key))));
    }
    Ok(match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "spec.nodeName" => text(spec.and_then(|s| s.node_name.as_ref())),
        "spec.serviceAccountName" => service_account(pod).to_owned(),
        "status.podIP" => first(&sources.ips),
        "status.podIPs" => join(&sources.ips),
        "status.hostIP" => first(&sources.host_ips),
        "status.hostIPs" => join(&sources.host_ips),
        other => {
            return Err(ConfigError::Unsupported(format!("unsupported fieldPath: {other}")));
        }
    })
}

/// Name of the pod's service account.
pub(crate) fn service_account(pod: &Pod) -> &str {
    let name = pod.spec.as_ref().and_then(|s| s.service_account_name.as_deref());
    name.filter(|name| !name.is_empty()).unwrap_or("default")
}

/// As [`field`] for a file: all labels or annotations too, one `key="value"` per line.
pub(crate) fn volume_field(
    pod: &Pod,
    path: &str,
    sources: &Sources,
) -> Result<String, ConfigError> {
    let all = |map: Option<&BTreeMap<String, String>>| {
        let lines =
            map.into_iter().flatten().map(|(key, value)| format!("{key}={}", quoted(value)));
        lines.collect::<Vec<_>>().join("\n")
    };
    match path {
        "metadata.labels" => Ok(all(pod.metadata.labels.as_ref())),
        "metadata.annotations" => Ok(all(pod.metadata.annotations.as_ref())),
        other => field(pod, other, sources),
    }
}

/// As Go's `%q`, for which programs that read these files are written.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if (c as u32) < 0x20 || c == '\u{7f}' => {
                out.push_str(&format!("\\x{:02x}", c as u32));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of a resource for a file, which must name its container.
pub(crate) fn volume_resource(
    pod: &Pod,
    wanted: &ResourceFieldSelector,
    sources: &Sources,
) -> Result<String, ConfigError> {
    let container = pod.spec.iter().flat_map(|s| s.containers.first()).next();
    match (&wanted.container_name, container) {
        (Some(_), Some(container)) => resource(pod, container, wanted, sources),
        _ => Err(ConfigError::Unsupported(format!(
            "resource {} of a volume needs a containerName",
            wanted.resource
        ))),
    }
}

/// `key` of `prefix['key']`.
fn subscript<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")
}

fn resource(
    pod: &Pod,
    container: &Container,
    wanted: &ResourceFieldSelector,
    sources: &Sources,
) -> Result<String, ConfigError> {
    let unsupported =
        || ConfigError::Unsupported(format!("unsupported resource: {}", wanted.resource));
    let container = match &wanted.container_name {
        Some(name) => pod
            .spec
            .iter()
            .flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()))
            .find(|c| c.name == *name)
            .ok_or_else(unsupported)?,
        None => container,
    };
    let (list, what) = wanted.resource.split_once('.').ok_or_else(unsupported)?;
    let resources = container.resources.as_ref();
    let is_limit = match list {
        "limits" => true,
        "requests" => false,
        _ => return Err(unsupported()),
    };
    let set = resources
        .and_then(|r| if is_limit { r.limits.as_ref() } else { r.requests.as_ref() })
        .and_then(|l| l.get(what));
    let divisor = wanted.divisor.as_ref().map_or("1", |q| q.0.as_str());
    let (value, unit) = match what {
        "cpu" => (
            set.and_then(|q| cpu_millis(&q.0)).or(is_limit.then_some(sources.allocatable.0)),
            cpu_millis(divisor),
        ),
        "memory" => (
            set.and_then(|q| bytes(&q.0)).or(is_limit.then_some(sources.allocatable.1)),
            bytes(divisor),
        ),
        "ephemeral-storage" => (
            set.and_then(|q| bytes(&q.0)).or(is_limit.then_some(sources.ephemeral_bytes)),
            bytes(divisor),
        ),
        // There are no huge pages to be had, and what is asked for is what is told.
        huge if huge.starts_with("hugepages-") => (set.and_then(|q| bytes(&q.0)), bytes(divisor)),
        _ => return Err(unsupported()),
    };
    // Kubernetes takes a divisor of 0 as 1.
    let one = if what == "cpu" { 1000 } else { 1 };
    let unit = unit.filter(|u| *u > 0).unwrap_or(one);
    Ok(value.unwrap_or(0).div_ceil(unit).to_string())
}

/// Replaces `$(NAME)` by its value; `$$` is a dollar sign; names that are not set stay as they are.
pub(crate) fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, tail)) =
            after.strip_prefix('(').and_then(|inner| inner.split_once(')'))
        {
            match env.iter().find(|(had, _)| had == name) {
                Some((_, value)) => out.push_str(value),
                None => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}
