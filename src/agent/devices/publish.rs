//! The slice of this node's devices.

use std::collections::BTreeSet;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::resource::v1::{
    Device, DeviceAttribute, ResourcePool, ResourceSlice, ResourceSliceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt as _};
use tracing::{info, warn};

use crate::agent::devices::DRIVER;
use crate::client::is_not_found;
use crate::config::{self, DeviceSettings};

/// Keeps the node's slice as its devices are.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    devices: Vec<DeviceSettings>,
    /// The Node and the devices that were told last.
    told: Option<(String, Vec<Device>)>,
    /// Devices that were not there at the last look.
    missing: BTreeSet<String>,
}

impl Publisher {
    pub(crate) fn new(devices: Vec<DeviceSettings>) -> Self {
        Self { devices, ..Self::default() }
    }

    /// Whether the slice is to be looked at from time to time.
    pub(crate) const fn has_any(&self) -> bool {
        !self.devices.is_empty()
    }

    /// Whoever took the slice away gets it back at the next look.
    pub(crate) fn doubt(&mut self) {
        self.told = None;
    }

    /// Tells what there is, if that was not told of this Node yet.
    pub(crate) async fn tell(&mut self, client: &kube::Client, node: &Node) -> kube::Result<()> {
        let uid = node.uid().unwrap_or_default();
        let present = present(&self.devices);
        self.note_missing(&present);
        if self.told.as_ref().is_some_and(|(of, devices)| *of == uid && *devices == present) {
            return Ok(());
        }
        let api: Api<ResourceSlice> = Api::all(client.clone());
        let name = slice_name(&node.name_any());
        let had = api.get_opt(&name).await?;
        match had {
            None if present.is_empty() => {}
            Some(_) if present.is_empty() => {
                match api.delete(&name, &DeleteParams::default()).await {
                    Err(err) if !is_not_found(&err) => return Err(err),
                    _ => info!("the node has no devices for claims any more"),
                }
            }
            None => {
                api.create(&PostParams::default(), &slice(node, &present, 1)).await?;
                info!(count = present.len(), "the node's devices are told");
            }
            Some(had) if is_same(&had, node, &present) => {}
            Some(had) => {
                let mut new =
                    slice(node, &with_taints(&present, &had), had.spec.pool.generation + 1);
                new.metadata.resource_version = had.resource_version();
                api.replace(&name, &PostParams::default(), &new).await?;
                info!(count = present.len(), "the node's devices have changed");
            }
        }
        self.told = Some((uid, present));
        Ok(())
    }
}

impl Publisher {
    /// Says once of each device that it is not there.
    fn note_missing(&mut self, present: &[Device]) {
        let is_there = |name: &str| present.iter().any(|device| device.name == name);
        for device in self.devices.iter().filter(|device| !is_there(&device.name)) {
            if self.missing.insert(device.name.clone()) {
                let path = device.path.display();
                warn!(device = device.name, %path, "the device is not there");
            }
        }
        self.missing.retain(|name| !is_there(name));
    }
}

fn slice_name(node: &str) -> String {
    format!("{node}-{DRIVER}")
}

/// The slice of the node with these devices.
fn slice(node: &Node, devices: &[Device], generation: i64) -> ResourceSlice {
    let name = node.name_any();
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: name.clone(),
        uid: node.uid().unwrap_or_default(),
        controller: Some(true),
        ..OwnerReference::default()
    };
    ResourceSlice {
        metadata: ObjectMeta {
            name: Some(slice_name(&name)),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        spec: ResourceSliceSpec {
            driver: DRIVER.to_owned(),
            node_name: Some(name.clone()),
            pool: ResourcePool { name, generation, resource_slice_count: 1 },
            devices: Some(devices.to_vec()),
            ..ResourceSliceSpec::default()
        },
    }
}

/// Whether the slice says what is to be said. Taints are others' word: they stay.
fn is_same(had: &ResourceSlice, node: &Node, devices: &[Device]) -> bool {
    let uid = node.uid().unwrap_or_default();
    let told = had.spec.devices.as_deref().unwrap_or_default();
    let plain = |device: &Device| Device { taints: None, ..device.clone() };
    had.owner_references().iter().any(|owner| owner.uid == uid)
        && told.iter().map(plain).eq(devices.iter().cloned())
}

/// The devices with the taints that they had: those are others' word.
fn with_taints(devices: &[Device], had: &ResourceSlice) -> Vec<Device> {
    let told = had.spec.devices.as_deref().unwrap_or_default();
    let taints = |name: &str| told.iter().find(|old| old.name == name)?.taints.clone();
    devices.iter().map(|new| Device { taints: taints(&new.name), ..new.clone() }).collect()
}

/// The devices that are there, as the slice shows them.
fn present(devices: &[DeviceSettings]) -> Vec<Device> {
    let shown = devices.iter().filter_map(|device| {
        let kind = kind(&device.path)?;
        let own = device.attributes.iter().map(|(key, value)| (key.clone(), attribute(value)));
        let text = config::DeviceAttribute::Text(kind.to_owned());
        let attributes = own.chain([("kind".to_owned(), attribute(&text))]).collect();
        Some(Device {
            name: device.name.clone(),
            attributes: Some(attributes),
            ..Device::default()
        })
    });
    shown.collect()
}

fn attribute(value: &config::DeviceAttribute) -> DeviceAttribute {
    let mut attribute = DeviceAttribute::default();
    match value {
        config::DeviceAttribute::Bool(value) => attribute.bool = Some(*value),
        config::DeviceAttribute::Int(value) => attribute.int = Some(*value),
        config::DeviceAttribute::Text(value) => attribute.string = Some(value.clone()),
    }
    attribute
}

/// What is at the path; `None`: nothing that can be given.
fn kind(path: &Path) -> Option<&'static str> {
    let kind = std::fs::metadata(path).ok()?.file_type();
    if kind.is_dir() {
        Some("folder")
    } else if kind.is_file() {
        Some("file")
    } else if kind.is_char_device() {
        Some("character")
    } else {
        kind.is_block_device().then_some("block")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_there_is_shown_with_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let device = |name: &str, path: &Path| DeviceSettings {
            name: name.to_owned(),
            path: path.to_owned(),
            attributes: [("model".to_owned(), config::DeviceAttribute::Text("x".to_owned()))]
                .into(),
        };
        let devices = [
            device("gone", &folder.path().join("gone")),
            device("null", Path::new("/dev/null")),
            device("shelf", folder.path()),
        ];
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "uid": "u"}})).unwrap();
        let told = slice(&node, &present(&devices), 3);
        assert!(is_same(&told, &node, &present(&devices)));
        let shown = serde_json::to_value(&told).unwrap();
        let null = json!({"name": "null", "attributes": {"kind": {"string": "character"}, "model": {"string": "x"}}});
        assert_eq!(shown["spec"]["devices"][0], null);
        assert_eq!(shown["spec"]["devices"][1]["attributes"]["kind"]["string"], "folder");
        assert_eq!(shown["spec"]["devices"].as_array().unwrap().len(), 2);
        let pool = json!({"name": "n", "generation": 3, "resourceSliceCount": 1});
        assert_eq!(shown["spec"]["pool"], pool);
        assert_eq!(shown["metadata"]["ownerReferences"][0]["uid"], "u");
    }

    #[test]
    fn taints_that_others_gave_are_no_difference_and_another_node_is() {
        let node = |uid: &str| -> Node {
            serde_json::from_value(json!({"metadata": {"name": "n", "uid": uid}})).unwrap()
        };
        let device = Device { name: "d".to_owned(), ..Device::default() };
        let mut told = slice(&node("u"), std::slice::from_ref(&device), 1);
        let taint = json!([{"key": "k", "effect": "NoSchedule"}]);
        told.spec.devices.as_mut().unwrap()[0].taints = serde_json::from_value(taint).unwrap();
        assert!(is_same(&told, &node("u"), std::slice::from_ref(&device)));
        let new = with_taints(&[device.clone(), Device::default()], &told);
        assert!(new[0].taints.is_some() && new[1].taints.is_none());
        assert!(!is_same(&told, &node("v"), std::slice::from_ref(&device)));
        assert!(!is_same(&told, &node("u"), &[]));
    }
}
