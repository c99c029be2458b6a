//! `KubeSchedulerConfiguration`, as far as there is something to configure: profiles, and plugins that
//! are components.
//!
//! ```text
//! ConfigMap kube-system/kube-scheduler, key config.yaml
//!
//! apiVersion: kubescheduler.config.k8s.io/v1
//! kind: KubeSchedulerConfiguration
//! profiles:
//! - schedulerName: default-scheduler
//!   plugins:
//!     filter: {enabled: [{name: thermal}]}
//!     score: {enabled: [{name: thermal, weight: 3}]}
//!   pluginConfig:
//!   - name: thermal
//!     args: {image: "infra/thermal:1", failurePolicy: Ignore, timeout: 20ms, memory: 16Mi}
//! ```
//!
//! Unknown fields are errors: a setting that does nothing is worse than none.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::Deserialize;

use crate::api::quantity::parse_bytes;
use crate::scheduler::demand::SCHEDULER_NAME;

/// Where the configuration is: one for the cluster, whichever server leads.
pub const CONFIG_NAMESPACE: &str = "kube-system";
/// Name of its ConfigMap.
pub const CONFIG_NAME: &str = "kube-scheduler";
/// The key in it.
pub const CONFIG_KEY: &str = "config.yaml";

/// What the document says it is.
const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";
/// What the arguments of a plugin say they are, if they do.
const ARGS_API_VERSION: &str = "edgeorc.io/v1";
const ARGS_KIND: &str = "WasmPluginArgs";
/// Most profiles, and most plugins of one.
const PROFILES_MAX: usize = 16;
const PLUGINS_MAX: usize = 8;
/// Largest weight of a plugin's points; Kubernetes' own weights are 1 to 3.
const WEIGHT_MAX: i64 = 100;
/// How long one pod waits for a plugin, all nodes together.
const TIMEOUT_DEFAULT: Duration = Duration::from_millis(20);
const TIMEOUT_MIN: Duration = Duration::from_millis(2);
const TIMEOUT_MAX: Duration = Duration::from_millis(200);
/// Memory of a plugin, in bytes.
const MEMORY_DEFAULT: u64 = 16 << 20;
const MEMORY_MIN: u64 = 64 << 10;
const MEMORY_MAX: u64 = 256 << 20;

/// What becomes of a pod when a plugin gives no answer; the words are those of webhooks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum FailurePolicy {
    /// It goes on as if the plugin had not been asked.
    #[default]
    Ignore,
    /// It waits.
    Fail,
}

/// One plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginArgs {
    /// Its name in the profile.
    pub name: String,
    /// The component, as a container names its image.
    pub image: String,
    /// What its failures mean.
    pub failure_policy: FailurePolicy,
    /// The longest that one pod waits for it, all nodes together.
    pub timeout: Duration,
    /// The most memory of an instance.
    pub memory_bytes: u64,
}

/// One profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileConfig {
    /// What pods ask for in `spec.schedulerName`.
    pub scheduler_name: String,
    /// Its plugins.
    pub plugins: Vec<PluginArgs>,
    /// Places in `plugins` of those that filter, in order.
    pub filters: Vec<usize>,
    /// Places in `plugins` of those that score, with their weights.
    pub scores: Vec<(usize, i64)>,
}

/// The whole of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Configuration {
    /// Its profiles; no two have one name.
    pub profiles: Vec<ProfileConfig>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    api_version: String,
    kind: String,
    #[serde(default)]
    profiles: Vec<Profile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    scheduler_name: Option<String>,
    #[serde(default)]
    plugins: Points,
    #[serde(default)]
    plugin_config: Vec<PluginConfig>,
}

/// Where plugins may have a say.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Points {
    #[serde(default)]
    filter: Set,
    #[serde(default)]
    score: Set,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Set {
    #[serde(default)]
    enabled: Vec<Enabled>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Enabled {
    name: String,
    weight: Option<i64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PluginConfig {
    name: String,
    args: Args,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Args {
    api_version: Option<String>,
    kind: Option<String>,
    image: String,
    #[serde(default)]
    failure_policy: FailurePolicy,
    timeout: Option<String>,
    memory: Option<String>,
}

impl Configuration {
    /// Reads the document.
    ///
    /// # Errors
    ///
    /// What is wrong with it, with the place; a person must mend it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let document: Document = serde_saphyr::from_str(text).map_err(|cause| cause.to_string())?;
        if document.api_version != API_VERSION || document.kind != KIND {
            return Err(format!("it must be of apiVersion {API_VERSION} and kind {KIND}"));
        }
        if document.profiles.len() > PROFILES_MAX {
            return Err(format!("profiles: more than {PROFILES_MAX}"));
        }
        let mut names = BTreeSet::new();
        let mut profiles = Vec::new();
        for (at, profile) in document.profiles.into_iter().enumerate() {
            let place = format!("profiles[{at}]");
            let profile = profile.read(&place)?;
            if !names.insert(profile.scheduler_name.clone()) {
                let name = &profile.scheduler_name;
                return Err(format!("{place}.schedulerName: {name:?} has a profile already"));
            }
            profiles.push(profile);
        }
        Ok(Self { profiles })
    }
}

impl Profile {
    fn read(self, place: &str) -> Result<ProfileConfig, String> {
        let scheduler_name = self.scheduler_name.unwrap_or_else(|| SCHEDULER_NAME.to_owned());
        if scheduler_name.is_empty() || scheduler_name.len() > 253 {
            return Err(format!("{place}.schedulerName: it must have 1 to 253 characters"));
        }
        if self.plugin_config.len() > PLUGINS_MAX {
            return Err(format!("{place}.pluginConfig: more than {PLUGINS_MAX}"));
        }
        let mut plugins: Vec<PluginArgs> = Vec::new();
        for (at, config) in self.plugin_config.into_iter().enumerate() {
            let place = format!("{place}.pluginConfig[{at}]");
            if config.name.is_empty() || plugins.iter().any(|other| other.name == config.name) {
                return Err(format!("{place}.name: {:?} is empty or there twice", config.name));
            }
            plugins.push(config.args.read(config.name, &place)?);
        }
        let at = |name: &str, place: &str| {
            let found = plugins.iter().position(|plugin| plugin.name == name);
            found.ok_or_else(|| {
                format!(
                    "{place}: {name:?} has no pluginConfig with an image; the plugins of this program are always on"
                )
            })
        };
        let mut filters = Vec::new();
        for enabled in &self.plugins.filter.enabled {
            filters.push(at(&enabled.name, &format!("{place}.plugins.filter"))?);
        }
        let mut scores = Vec::new();
        for enabled in &self.plugins.score.enabled {
            let place = format!("{place}.plugins.score");
            let weight = enabled.weight.unwrap_or(1);
            if !(1..=WEIGHT_MAX).contains(&weight) {
                return Err(format!("{place}: the weight {weight} is not from 1 to {WEIGHT_MAX}"));
            }
            scores.push((at(&enabled.name, &place)?, weight));
        }
        let is_twice = |all: &[usize]| all.iter().collect::<BTreeSet<_>>().len() < all.len();
        let scoring: Vec<_> = scores.iter().map(|(at, _)| *at).collect();
        if is_twice(&filters) || is_twice(&scoring) {
            return Err(format!("{place}.plugins: a plugin is enabled twice"));
        }
        Ok(ProfileConfig { scheduler_name, plugins, filters, scores })
    }
}

impl Args {
    fn read(self, name: String, place: &str) -> Result<PluginArgs, String> {
        let is = |said: &Option<String>, wanted: &str| said.as_ref().is_none_or(|it| it == wanted);
        if !is(&self.api_version, ARGS_API_VERSION) || !is(&self.kind, ARGS_KIND) {
            let wanted = format!("apiVersion {ARGS_API_VERSION} and kind {ARGS_KIND}");
            return Err(format!("{place}.args: they must be of {wanted}"));
        }
        if self.image.is_empty() {
            return Err(format!("{place}.args.image: it is empty"));
        }
        let timeout = match &self.timeout {
            None => TIMEOUT_DEFAULT,
            Some(text) => duration(text)
                .filter(|time| (TIMEOUT_MIN..=TIMEOUT_MAX).contains(time))
                .ok_or_else(|| {
                    let (min, max) = (TIMEOUT_MIN.as_millis(), TIMEOUT_MAX.as_millis());
                    format!("{place}.args.timeout: {text:?} is no time from {min}ms to {max}ms")
                })?,
        };
        let memory_bytes = match &self.memory {
            None => MEMORY_DEFAULT,
            Some(text) => parse_bytes(text)
                .ok()
                .and_then(|bytes| u64::try_from(bytes).ok())
                .filter(|bytes| (MEMORY_MIN..=MEMORY_MAX).contains(bytes))
                .ok_or_else(|| {
                    format!("{place}.args.memory: {text:?} is no amount from 64Ki to 256Mi")
                })?,
        };
        Ok(PluginArgs {
            name,
            image: self.image,
            failure_policy: self.failure_policy,
            timeout,
            memory_bytes,
        })
    }
}

fn duration(text: &str) -> Option<Duration> {
    Duration::try_from(text.parse::<jiff::SignedDuration>().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str =
        "apiVersion: kubescheduler.config.k8s.io/v1\nkind: KubeSchedulerConfiguration\n";

    fn parse(profiles: &str) -> Result<Configuration, String> {
        Configuration::parse(&format!("{HEAD}profiles: {profiles}\n"))
    }

    #[test]
    fn a_profile_names_its_plugins_and_their_images() {
        let read = parse(
            "[{plugins: {filter: {enabled: [{name: b}]}, score: {enabled: [{name: a}, {name: b, weight: 3}]}},
               pluginConfig: [
                 {name: a, args: {image: a:1}},
                 {name: b, args: {apiVersion: edgeorc.io/v1, kind: WasmPluginArgs, image: b:1,
                   failurePolicy: Fail, timeout: 5ms, memory: 1Mi}}]},
              {schedulerName: cool}]",
        )
        .unwrap();
        let plugin = |name: &str, failure_policy, timeout, memory_bytes| PluginArgs {
            name: name.to_owned(),
            image: format!("{name}:1"),
            failure_policy,
            timeout: Duration::from_millis(timeout),
            memory_bytes,
        };
        let default = ProfileConfig {
            scheduler_name: "default-scheduler".to_owned(),
            plugins: vec![
                plugin("a", FailurePolicy::Ignore, 20, 16 << 20),
                plugin("b", FailurePolicy::Fail, 5, 1 << 20),
            ],
            filters: vec![1],
            scores: vec![(0, 1), (1, 3)],
        };
        assert_eq!(read.profiles[0], default);
        assert_eq!(read.profiles[1].scheduler_name, "cool");
        assert_eq!(parse("[]").unwrap(), Configuration::default());
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_place() {
        let config = "pluginConfig: [{name: a, args: {image: a:1}}]";
        for (profiles, words) in [
            ("[{scheduler: x}]", "scheduler"),
            ("[{}, {}]", "profiles[1].schedulerName"),
            ("[{plugins: {filter: {enabled: [{name: NodeName}]}}}]", "profiles[0].plugins.filter"),
            ("[{plugins: {filter: {disabled: [{name: NodeName}]}}}]", "disabled"),
            ("[{plugins: {bind: {}}}]", "bind"),
            (
                &format!(
                    "[{{plugins: {{score: {{enabled: [{{name: a, weight: 0}}]}}}}, {config}}}]"
                ),
                "weight 0",
            ),
            (
                &format!(
                    "[{{plugins: {{filter: {{enabled: [{{name: a}}, {{name: a}}]}}}}, {config}}}]"
                ),
                "twice",
            ),
            ("[{pluginConfig: [{name: a, args: {image: ''}}]}]", "pluginConfig[0].args.image"),
            ("[{pluginConfig: [{name: a, args: {image: x, timeout: 1s}}]}]", "args.timeout"),
            ("[{pluginConfig: [{name: a, args: {image: x, timeout: soon}}]}]", "args.timeout"),
            ("[{pluginConfig: [{name: a, args: {image: x, memory: 1Gi}}]}]", "args.memory"),
            ("[{pluginConfig: [{name: a, args: {image: x, failurePolicy: no}}]}]", "no"),
            ("[{pluginConfig: [{name: a, args: {image: x, kind: Other}}]}]", "WasmPluginArgs"),
        ] {
            let refused = parse(profiles).unwrap_err();
            assert!(refused.contains(words), "{profiles}: {refused}");
        }
        assert!(Configuration::parse("apiVersion: v1\nkind: Pod\n").is_err());
    }
}
