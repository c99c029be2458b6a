//! Why a node does not take a pod, in Kubernetes' words.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Taint;

/// Why a node does not take a pod. Borrows from the view: making one costs nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reason<'a> {
    Unschedulable,
    NodeName,
    Taint {
        key: &'a str,
        value: &'a str,
    },
    NodeAffinity,
    Ports,
    Pods,
    Cpu,
    Memory,
    EphemeralStorage,
    Extended(&'a str),
    ClaimInUse,
    Storage(&'static str),
    /// Of claimed devices: Kubernetes' words, or why an expression has no value.
    Devices(Cow<'static, str>),
    Spread,
    SpreadLabel,
    Affinity,
    AntiAffinity,
    ExistingAntiAffinity,
    /// A plugin that is not part of this program, in its own words; or why it has none.
    Extension {
        plugin: Arc<str>,
        text: Arc<str>,
        is_failure: bool,
    },
    /// Plugins were asked about enough nodes for this time.
    NotAsked,
}

impl<'a> Reason<'a> {
    pub(super) fn taint(taint: &'a Taint) -> Self {
        Self::Taint { key: &taint.key, value: taint.value.as_deref().unwrap_or_default() }
    }

    /// The plugin of Kubernetes that says so.
    pub(super) fn plugin(&self) -> &str {
        match self {
            Self::Unschedulable => "NodeUnschedulable",
            Self::NodeName => "NodeName",
            Self::Taint { .. } => "TaintToleration",
            Self::NodeAffinity => "NodeAffinity",
            Self::Ports => "NodePorts",
            Self::Pods | Self::Cpu | Self::Memory | Self::EphemeralStorage | Self::Extended(_) => {
                "NodeResourcesFit"
            }
            Self::ClaimInUse => "VolumeRestrictions",
            Self::Storage(_) => "VolumeBinding",
            Self::Devices(_) => "DynamicResources",
            Self::Spread | Self::SpreadLabel => "PodTopologySpread",
            Self::Affinity | Self::AntiAffinity | Self::ExistingAntiAffinity => "InterPodAffinity",
            Self::Extension { plugin, .. } => plugin,
            Self::NotAsked => "extensions",
        }
    }

    /// Whether it holds even if pods of lower priority leave the node.
    pub(super) fn is_final(&self) -> bool {
        matches!(
            self,
            Self::Unschedulable
                | Self::NodeName
                | Self::Taint { .. }
                | Self::NodeAffinity
                | Self::Storage(_)
                | Self::Devices(_)
                | Self::SpreadLabel
                | Self::Affinity
                | Self::Extension { .. }
                | Self::NotAsked
        )
    }

    /// Whether another try may find otherwise although nothing changed.
    pub(super) fn is_passing(&self) -> bool {
        matches!(self, Self::Extension { is_failure: true, .. } | Self::NotAsked)
    }

    /// Changes that may take the reason away.
    pub(super) fn helped_by(&self) -> Changes {
        match self {
            Self::Unschedulable | Self::NodeName | Self::Taint { .. } | Self::NodeAffinity => {
                Changes::NODE
            }
            Self::Ports
            | Self::Pods
            | Self::Cpu
            | Self::Memory
            | Self::EphemeralStorage
            | Self::Extended(_) => Changes::NODE.and(Changes::POD_LEFT),
            Self::ClaimInUse | Self::Storage(_) => {
                Changes::NODE.and(Changes::STORAGE).and(Changes::POD_LEFT)
            }
            Self::Devices(_) => Changes::NODE.and(Changes::DEVICES),
            Self::SpreadLabel => Changes::NODE,
            Self::Extension { .. } => Changes::NODE.and(Changes::EXTENSION),
            Self::NotAsked => Changes::ALL,
            Self::Spread | Self::Affinity | Self::AntiAffinity | Self::ExistingAntiAffinity => {
                Changes::NODE.and(Changes::POD_LEFT).and(Changes::POD_CAME).and(Changes::NAMESPACE)
            }
        }
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Unschedulable => "node(s) were unschedulable",
            Self::NodeName => "node(s) didn't match the requested node name",
            Self::Taint { key, value } => {
                return write!(f, "node(s) had untolerated taint {{{key}: {value}}}");
            }
            Self::NodeAffinity => "node(s) didn't match Pod's node affinity/selector",
            Self::Ports => "node(s) didn't have free ports for the requested pod ports",
            Self::Pods => "Too many pods",
            Self::Cpu => "Insufficient cpu",
            Self::Memory => "Insufficient memory",
            Self::EphemeralStorage => "Insufficient ephemeral-storage",
            Self::Extended(name) => return write!(f, "Insufficient {name}"),
            Self::ClaimInUse => {
                "node has pod using PersistentVolumeClaim with the same name and ReadWriteOncePod \
                 access mode"
            }
            Self::Storage(text) => text,
            Self::Devices(text) => text,
            Self::Spread => "node(s) didn't match pod topology spread constraints",
            Self::SpreadLabel => {
                "node(s) didn't match pod topology spread constraints (missing required label)"
            }
            Self::Affinity => "node(s) didn't match pod affinity rules",
            Self::AntiAffinity => "node(s) didn't match pod anti-affinity rules",
            Self::ExistingAntiAffinity => {
                "node(s) didn't satisfy existing pods anti-affinity rules"
            }
            Self::Extension { plugin, text, .. } => {
                return write!(f, "node(s) refused by plugin {plugin}: {text}");
            }
            Self::NotAsked => "node(s) that plugins were not asked about yet",
        };
        f.write_str(text)
    }
}

/// Kinds of changes, some or none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Changes(u8);

impl Changes {
    /// None.
    pub const NONE: Self = Self(0);
    /// A node came, or says something else of itself.
    pub const NODE: Self = Self(1);
    /// A pod left a node.
    pub const POD_LEFT: Self = Self(2);
    /// A pod came to a node.
    pub const POD_CAME: Self = Self(4);
    /// A claim, a volume or a class of storage changed.
    pub const STORAGE: Self = Self(8);
    /// Labels of a namespace changed.
    pub const NAMESPACE: Self = Self(16);
    /// Plugins came, went or were mended.
    pub const EXTENSION: Self = Self(32);
    /// A claim, a class or a slice of devices changed.
    pub const DEVICES: Self = Self(64);
    /// All of them.
    pub const ALL: Self = Self(127);

    /// Both.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether they have one in common.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// Why no node takes a pod: how many nodes there are, and how many have each reason.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unschedulable {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many of them refuse for each reason. A node may have several; none is about the pod.
    pub reasons: BTreeMap<String, usize>,
    /// Changes after which it is worth another try.
    pub helped_by: Changes,
    /// Another try soon is worth it whatever changes: a plugin gave no answer.
    pub is_passing: bool,
    /// What came of asking whether others can leave; empty if nobody asked.
    pub preemption: String,
}

impl fmt::Display for Unschedulable {
    /// As Kubernetes words it; people and tests search for parts of it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        write!(f, "0/{} nodes are available: {}.", self.nodes, counted(&self.reasons))?;
        if self.preemption.is_empty() {
            return Ok(());
        }
        write!(f, " preemption: {}", self.preemption)
    }
}

/// `2 Insufficient cpu, 3 node(s) were unschedulable`, sorted as text.
pub(super) fn counted(reasons: &BTreeMap<String, usize>) -> String {
    let texts = reasons.iter().map(|(reason, count)| match count {
        0 => reason.clone(),
        count => format!("{count} {reason}"),
    });
    let mut texts: Vec<_> = texts.collect();
    texts.sort();
    texts.join(", ")
}
