//! What the files of a volume are: a pure function of the pod and of what it names.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, KeyToPath, Pod, ServiceAccountTokenProjection, Volume, VolumeProjection,
};

use crate::agent::pod::env::{self, ConfigError, Sources};
use crate::agent::pod::volumes::atomic::{File, Payload};

/// Mode of a file that names none.
const MODE_DEFAULT: u32 = 0o644;

/// The files of `volume`; `None` for a volume that the agent does not fill.
pub(super) fn payload(
    pod: &Pod,
    volume: &Volume,
    sources: &Sources,
) -> Result<Option<Payload>, ConfigError> {
    let mut out = Payload::new();
    if let Some(wanted) = &volume.config_map {
        let keys = Keys::of_config_map(&wanted.name, wanted.optional, sources)?;
        keys.put(wanted.items.as_deref(), mode(wanted.default_mode), &mut out)?;
    } else if let Some(wanted) = &volume.secret {
        let name = wanted.secret_name.as_deref().unwrap_or_default();
        let keys = Keys::of_secret(name, wanted.optional, sources)?;
        keys.put(wanted.items.as_deref(), mode(wanted.default_mode), &mut out)?;
    } else if let Some(wanted) = &volume.downward_api {
        let items = wanted.items.as_deref().unwrap_or_default();
        put_downward(pod, items, mode(wanted.default_mode), sources, &mut out)?;
    } else if let Some(wanted) = &volume.projected {
        let default = mode(wanted.default_mode);
        for source in wanted.sources.iter().flatten() {
            put_projection(pod, source, default, sources, &mut out)?;
        }
    } else {
        return Ok(None);
    }
    Ok(Some(out))
}

fn put_projection(
    pod: &Pod,
    source: &VolumeProjection,
    default_mode: u32,
    sources: &Sources,
    out: &mut Payload,
) -> Result<(), ConfigError> {
    if let Some(wanted) = &source.config_map {
        let keys = Keys::of_config_map(&wanted.name, wanted.optional, sources)?;
        keys.put(wanted.items.as_deref(), default_mode, out)?;
    }
    if let Some(wanted) = &source.secret {
        let keys = Keys::of_secret(&wanted.name, wanted.optional, sources)?;
        keys.put(wanted.items.as_deref(), default_mode, out)?;
    }
    if let Some(wanted) = &source.downward_api {
        let items = wanted.items.as_deref().unwrap_or_default();
        put_downward(pod, items, default_mode, sources, out)?;
    }
    if let Some(wanted) = &source.service_account_token {
        let token =
            sources.tokens.get(&TokenKey::of(wanted)).ok_or_else(|| ConfigError::Unread {
                kind: "serviceaccount token",
                name: env::service_account(pod).to_owned(),
                reason: "it was not asked for".to_owned(),
            })?;
        insert(out, &wanted.path, token.as_bytes(), default_mode)?;
    }
    if source.cluster_trust_bundle.is_some() {
        return Err(ConfigError::Unsupported(
            "clusterTrustBundle is not a source of volumes on this node".to_owned(),
        ));
    }
    if source.pod_certificate.is_some() {
        return Err(ConfigError::Unsupported(
            "podCertificate is not a source of volumes on this node".to_owned(),
        ));
    }
    Ok(())
}

/// What tells one token of a pod from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TokenKey {
    /// Empty is the API server itself.
    pub(crate) audience: String,
    pub(crate) expiration_seconds: i64,
}

impl TokenKey {
    /// Life of a token whose pod names none, in seconds.
    const EXPIRATION_DEFAULT: i64 = 3600;

    pub(crate) fn of(wanted: &ServiceAccountTokenProjection) -> Self {
        Self {
            audience: wanted.audience.clone().unwrap_or_default(),
            expiration_seconds: wanted.expiration_seconds.unwrap_or(Self::EXPIRATION_DEFAULT),
        }
    }
}

/// The keys of a ConfigMap or Secret.
struct Keys<'a> {
    kind: &'static str,
    name: &'a str,
    is_optional: bool,
    content: BTreeMap<&'a str, &'a [u8]>,
}

impl<'a> Keys<'a> {
    fn of_config_map(
        name: &'a str,
        optional: Option<bool>,
        sources: &'a Sources,
    ) -> Result<Self, ConfigError> {
        let is_optional = optional == Some(true);
        let map = sources.config_maps.get(name).and_then(Option::as_ref);
        if map.is_none() && !is_optional {
            return Err(ConfigError::NoObject { kind: "configmap", name: name.to_owned() });
        }
        let mut content: BTreeMap<&str, &[u8]> = BTreeMap::new();
        for (key, value) in map.iter().flat_map(|m| m.data.iter().flatten()) {
            content.insert(key, value.as_bytes());
        }
        for (key, value) in map.iter().flat_map(|m| m.binary_data.iter().flatten()) {
            content.insert(key, &value.0);
        }
        Ok(Self { kind: "ConfigMap", name, is_optional, content })
    }

    fn of_secret(
        name: &'a str,
        optional: Option<bool>,
        sources: &'a Sources,
    ) -> Result<Self, ConfigError> {
        let is_optional = optional == Some(true);
        let secret = sources.secrets.get(name).and_then(Option::as_ref);
        if secret.is_none() && !is_optional {
            return Err(ConfigError::NoObject { kind: "secret", name: name.to_owned() });
        }
        let content = secret
            .iter()
            .flat_map(|s| s.data.iter().flatten())
            .map(|(key, value)| (key.as_str(), value.0.as_slice()))
            .collect();
        Ok(Self { kind: "Secret", name, is_optional, content })
    }

    fn put(
        &self,
        items: Option<&[KeyToPath]>,
        default_mode: u32,
        out: &mut Payload,
    ) -> Result<(), ConfigError> {
        let Some(items) = items.filter(|items| !items.is_empty()) else {
            for (key, content) in &self.content {
                insert(out, key, content, default_mode)?;
            }
            return Ok(());
        };
        for item in items {
            match self.content.get(item.key.as_str()) {
                Some(content) => {
                    let mode = item.mode.map_or(default_mode, |own| mode(Some(own)));
                    insert(out, &item.path, content, mode)?;
                }
                None if self.is_optional => {}
                None => {
                    return Err(ConfigError::NoKey {
                        kind: self.kind,
                        name: self.name.to_owned(),
                        key: item.key.clone(),
                    });
                }
            }
        }
        Ok(())
    }
}

fn put_downward(
    pod: &Pod,
    items: &[DownwardAPIVolumeFile],
    default_mode: u32,
    sources: &Sources,
    out: &mut Payload,
) -> Result<(), ConfigError> {
    for item in items {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(wanted), _) => env::volume_field(pod, &wanted.field_path, sources)?,
            (None, Some(wanted)) => env::volume_resource(pod, wanted, sources)?,
            (None, None) => String::new(),
        };
        let mode = item.mode.map_or(default_mode, |own| mode(Some(own)));
        insert(out, &item.path, text.as_bytes(), mode)?;
    }
    Ok(())
}

fn mode(mode: Option<i32>) -> u32 {
    mode.and_then(|m| u32::try_from(m).ok()).map_or(MODE_DEFAULT, |m| m & 0o777)
}

fn insert(out: &mut Payload, path: &str, content: &[u8], mode: u32) -> Result<(), ConfigError> {
    let path = relative(path)?;
    out.insert(path, File { content: content.to_vec(), mode });
    Ok(())
}

/// A path within a volume in its plain form. The names that start with `..` are the agent's own.
pub(super) fn relative(path: &str) -> Result<PathBuf, ConfigError> {
    let refused = || {
        ConfigError::Unsupported(format!("path {path} must be relative and without .. in front"))
    };
    let mut plain = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(name) => plain.push(name),
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return Err(refused());
            }
        }
    }
    let starts_with_dots = plain
        .components()
        .next()
        .is_none_or(|first| first.as_os_str().as_encoded_bytes().starts_with(b".."));
    if starts_with_dots { Err(refused()) } else { Ok(plain) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sources() -> Sources {
        let map = json!({"data": {"a": "1", "b": "2"}, "binaryData": {"bin": "AAE="}});
        let secret = json!({"data": {"password": "c2VjcmV0"}});
        Sources {
            config_maps: BTreeMap::from([("c".into(), Some(serde_json::from_value(map).unwrap()))]),
            secrets: BTreeMap::from([
                ("s".into(), Some(serde_json::from_value(secret).unwrap())),
                ("none".into(), None),
            ]),
            tokens: BTreeMap::from([(
                TokenKey { audience: "vault".into(), expiration_seconds: 600 },
                "header.claims.signature".into(),
            )]),
            allocatable: (4000, 1 << 30),
            ..Sources::default()
        }
    }

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u",
                "labels": {"b": "2", "a": "say \"hi\""}, "annotations": {"x": "line\nline"}},
            "spec": {"containers": [{"name": "app", "resources": {
                "limits": {"cpu": "1500m", "memory": "64Mi", "ephemeral-storage": "1Gi"}}}]},
        }))
        .unwrap()
    }

    fn files(volume: Value) -> Result<BTreeMap<String, (String, u32)>, String> {
        let mut volume: Volume = serde_json::from_value(volume).unwrap();
        volume.name = "v".into();
        let payload = payload(&pod(), &volume, &sources()).map_err(|err| err.to_string())?;
        Ok(payload
            .unwrap()
            .into_iter()
            .map(|(path, file)| {
                let text = String::from_utf8(file.content).unwrap();
                (path.display().to_string(), (text, file.mode))
            })
            .collect())
    }

    #[test]
    fn a_projected_volume_holds_all_its_sources_with_their_modes() {
        let files = files(json!({"name": "v", "projected": {"defaultMode": 288, "sources": [
            {"configMap": {"name": "c", "items": [{"key": "a", "path": "etc/a", "mode": 256}]}},
            {"secret": {"name": "s"}},
            {"secret": {"name": "none", "optional": true}},
            {"downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "annotations", "fieldRef": {"fieldPath": "metadata.annotations"}},
                {"path": "one", "fieldRef": {"fieldPath": "metadata.labels['b']"}},
                {"path": "cpu", "resourceFieldRef": {"containerName": "app",
                    "resource": "limits.cpu", "divisor": "1m"}},
                {"path": "disk", "resourceFieldRef": {"containerName": "app",
                    "resource": "limits.ephemeral-storage", "divisor": "1Mi"}},
            ]}},
            {"serviceAccountToken": {"path": "token", "audience": "vault", "expirationSeconds": 600}},
        ]}}))
        .unwrap();
        for (path, text, mode) in [
            ("etc/a", "1", 0o400),
            ("password", "secret", 0o440),
            ("labels", "a=\"say \\\"hi\\\"\"\nb=\"2\"", 0o440),
            ("annotations", "x=\"line\\nline\"", 0o440),
            ("one", "2", 0o440),
            ("cpu", "1500", 0o440),
            ("disk", "1024", 0o440),
            ("token", "header.claims.signature", 0o440),
        ] {
            assert_eq!(files.get(path), Some(&(text.to_owned(), mode)), "{path}");
        }
        assert_eq!(files.len(), 8);
    }

    #[test]
    fn what_is_missing_or_refused_is_named() {
        for (volume, message) in [
            (json!({"configMap": {"name": "x"}}), "configmap \"x\" not found"),
            (json!({"secret": {"secretName": "none"}}), "secret \"none\" not found"),
            (
                json!({"configMap": {"name": "c", "items": [{"key": "z", "path": "z"}]}}),
                "couldn't find key z in ConfigMap c",
            ),
            (
                json!({"configMap": {"name": "c", "items": [{"key": "a", "path": "../a"}]}}),
                "path ../a must be relative and without .. in front",
            ),
            (
                json!({"configMap": {"name": "c", "items": [{"key": "a", "path": "..data"}]}}),
                "path ..data must be relative and without .. in front",
            ),
            (
                json!({"projected": {"sources": [{"clusterTrustBundle": {"path": "x"}}]}}),
                "clusterTrustBundle is not a source of volumes on this node",
            ),
        ] {
            let mut named = volume.clone();
            named["name"] = json!("v");
            assert_eq!(files(named).unwrap_err(), message, "{volume}");
        }
        let optional = json!({"name": "v", "configMap": {"name": "c", "optional": true,
            "items": [{"key": "z", "path": "z"}, {"key": "b", "path": "b"}]}});
        assert_eq!(files(optional).unwrap().len(), 1);
    }
}
