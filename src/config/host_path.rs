//! What pods may mount of the host.

use std::path::{Component, PathBuf};

use crate::config::ConfigError;

/// A folder of the host that pods may mount, with all that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPath {
    /// Absolute, without `..`.
    pub path: PathBuf,
    /// Mounts of it are read-only, whatever the pod asks for.
    pub is_read_only: bool,
}

impl HostPath {
    /// Reads `PATH` or `PATH:ro`.
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let (path, is_read_only) = match text.strip_suffix(":ro") {
            Some(path) => (path, true),
            None => (text, false),
        };
        let path = PathBuf::from(path);
        let is_plain =
            path.components().all(|c| matches!(c, Component::RootDir | Component::Normal(_)));
        if path.is_absolute() && is_plain {
            // In its plain form, so that it compares by its names.
            Ok(Self { path: path.components().collect(), is_read_only })
        } else {
            Err(ConfigError::HostPath { text: text.to_owned() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_paths_are_absolute_and_may_be_read_only() {
        let parsed = HostPath::parse("/srv//data/:ro").unwrap();
        assert_eq!(parsed, HostPath { path: "/srv/data".into(), is_read_only: true });
        assert!(!HostPath::parse("/srv").unwrap().is_read_only);
        for bad in ["srv", "", "/srv/../etc", ":ro"] {
            assert!(HostPath::parse(bad).is_err(), "{bad}");
        }
    }
}
