//! Devices of the machine that pods can claim.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use crate::config::ConfigError;
use crate::config::names::is_dns_label;

/// Devices of one node: as many as one ResourceSlice holds.
const DEVICES_MAX: usize = 128;
/// Attributes of one device, as Kubernetes has it; one of them is [`KIND`].
const ATTRIBUTES_MAX: usize = 32;
/// Bytes of the name of an attribute, as Kubernetes has it.
const KEY_BYTES_MAX: usize = 32;
/// Bytes of a text among the attributes, as Kubernetes has it.
const TEXT_BYTES_MAX: usize = 64;
/// The attribute that the node tells by itself.
const KIND: &str = "kind";

/// What an attribute of a device says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceAttribute {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Anything else, at most 64 bytes.
    Text(String),
}

impl DeviceAttribute {
    fn of(text: &str) -> Self {
        if let Ok(number) = text.parse() {
            return Self::Int(number);
        }
        text.parse().map_or_else(|_| Self::Text(text.to_owned()), Self::Bool)
    }
}

/// A device of the machine that pods can claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSettings {
    /// A DNS-1123 label, once on the node.
    pub name: String,
    /// Where it is on the host: absolute, without `..`. Guests find it at the same path.
    pub path: PathBuf,
    /// What pods choose it by, besides what the node tells by itself.
    pub attributes: BTreeMap<String, DeviceAttribute>,
}

/// Reads each `NAME=PATH[,KEY=VALUE...]`; sorted by name.
pub(super) fn devices(texts: &[String]) -> Result<Vec<DeviceSettings>, ConfigError> {
    let mut devices = BTreeMap::new();
    for text in texts {
        let refused = || ConfigError::Device { text: text.clone() };
        let device = device(text).ok_or_else(refused)?;
        let is_second = devices.insert(device.name.clone(), device).is_some();
        if is_second || devices.len() > DEVICES_MAX {
            return Err(refused());
        }
    }
    Ok(devices.into_values().collect())
}

/// Reads `NAME=PATH[,KEY=VALUE...]`; a path has no comma.
fn device(text: &str) -> Option<DeviceSettings> {
    let mut parts = text.split(',');
    let (name, path) = parts.next()?.split_once('=')?;
    let path = Path::new(path);
    let is_plain =
        path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
    if !is_dns_label(name) || !path.is_absolute() || !is_plain || path.file_name().is_none() {
        return None;
    }
    let mut attributes = BTreeMap::new();
    for part in parts {
        let (key, value) = attribute(part)?;
        if attributes.insert(key.to_owned(), value).is_some() {
            return None;
        }
    }
    if attributes.len() >= ATTRIBUTES_MAX {
        return None;
    }
    // The path in its plain form: it becomes a path of the guest's.
    Some(DeviceSettings { name: name.to_owned(), path: path.components().collect(), attributes })
}

/// Reads `KEY=VALUE`. The key is a C identifier.
fn attribute(text: &str) -> Option<(&str, DeviceAttribute)> {
    let (key, value) = text.split_once('=')?;
    let is_identifier = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let is_key = is_identifier && key.len() <= KEY_BYTES_MAX && key != KIND;
    let is_value = (1..=TEXT_BYTES_MAX).contains(&value.len());
    (is_key && is_value).then(|| (key, DeviceAttribute::of(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(texts: &[&str]) -> Result<Vec<DeviceSettings>, ConfigError> {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        devices(&texts)
    }

    #[test]
    fn a_device_has_a_name_a_path_and_typed_attributes() {
        let text = "camera0=/dev//video0,model=ov5647,pixels=5000000,colour=true,far=-3,at=a=b";
        let devices = read(&["pin17=/sys/class/gpio/gpio17", text]).unwrap();
        let names: Vec<_> = devices.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names, ["camera0", "pin17"]);
        assert_eq!(devices[0].path.to_str(), Some("/dev/video0"));
        let said = [
            ("model", DeviceAttribute::Text("ov5647".to_owned())),
            ("pixels", DeviceAttribute::Int(5_000_000)),
            ("colour", DeviceAttribute::Bool(true)),
            ("far", DeviceAttribute::Int(-3)),
            ("at", DeviceAttribute::Text("a=b".to_owned())),
        ];
        let said = said.map(|(key, value)| (key.to_owned(), value));
        assert_eq!(devices[0].attributes, said.into());
        assert!(devices[1].attributes.is_empty());
    }

    #[test]
    fn what_is_no_device_is_refused() {
        let long = format!("a=/dev/a,k={}", "x".repeat(65));
        let many: Vec<String> = (0..32).map(|i| format!("k{i}=1")).collect();
        let many = format!("a=/dev/a,{}", many.join(","));
        for bad in [
            "/dev/a",
            "A=/dev/a",
            "=/dev/a",
            "a=dev/a",
            "a=/dev/../etc",
            "a=/",
            "a=",
            "a=/dev/a,model",
            "a=/dev/a,",
            "a=/dev/a,1x=1",
            "a=/dev/a,a-b=1",
            "a=/dev/a,a.b/c=1",
            "a=/dev/a,kind=x",
            "a=/dev/a,k=",
            "a=/dev/a,k=1,k=2",
            &long,
            &many,
        ] {
            assert!(matches!(read(&[bad]), Err(ConfigError::Device { .. })), "{bad}");
        }
        assert!(read(&["a=/dev/a", "a=/dev/b"]).is_err(), "a name is of one device");
        let names: Vec<String> = (0..=DEVICES_MAX).map(|i| format!("d{i}=/dev/a")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(read(&names[1..]).is_ok() && read(&names).is_err());
    }
}
