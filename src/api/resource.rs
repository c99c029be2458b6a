//! The table of what the server serves: one row for each resource.

use jiff::Timestamp;
use serde_json::Value;

use crate::api::decode::Decoder;
use crate::api::field_error::Errors;
use crate::api::kinds;

/// All verbs of an ordinary resource, in the order discovery lists them.
pub const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// A resource: where it lives in the API, how it is named, and what is special about it.
#[derive(Debug, Clone, Copy)]
pub struct Resource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// API version, for example `v1`.
    pub version: &'static str,
    /// Name in URLs, for example `pods`.
    pub plural: &'static str,
    /// Name of one, for example `pod`.
    pub singular: &'static str,
    /// Kind of an object, for example `Pod`.
    pub kind: &'static str,
    /// Kind of a list, for example `PodList`.
    pub list_kind: &'static str,
    /// One sentence for OpenAPI and `kubectl explain`.
    pub description: &'static str,
    /// Short names that kubectl accepts, for example `po`.
    pub short_names: &'static [&'static str],
    /// Groups of kinds such as `all` in `kubectl get all`.
    pub categories: &'static [&'static str],
    /// Objects live in a namespace.
    pub is_namespaced: bool,
    /// Verbs of the main resource.
    pub verbs: &'static [&'static str],
    /// Never written to the log, whatever the namespace. See [`is_volatile`].
    pub is_volatile: bool,
    /// `/status` is served, and `status` is ignored on the main resource.
    pub has_status: bool,
    /// `/scale` is served.
    pub has_scale: bool,
    /// Whether `metadata.generation` is kept: 1 at creation, +1 when the spec changes.
    pub has_generation: bool,
    /// Subresources that discovery lists beside `status` and `scale`.
    pub subresources: &'static [Subresource],
    /// Columns of a Table.
    pub columns: &'static [Column],
    /// Paths a field selector may name, beside `metadata.name` and `metadata.namespace`.
    pub field_selectors: &'static [&'static str],
    /// What this kind does on writes and in print.
    pub(crate) strategy: Strategy,
}

impl Resource {
    /// `v1` or `apps/v1`.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods` or `deployments.apps`: how error texts name the resource.
    #[must_use]
    pub fn qualified(&self) -> String {
        status_name(self.group, self.plural)
    }

    /// `Pod` or `Deployment.apps`: how error texts name the kind.
    #[must_use]
    pub fn qualified_kind(&self) -> String {
        status_name(self.group, self.kind)
    }

    /// Whether `verb` is served on the main resource.
    #[must_use]
    pub fn has_verb(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// The URL path of its version: `/api/v1` or `/apis/apps/v1`.
    #[must_use]
    pub fn version_path(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }
}

impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        (self.group, self.version, self.plural) == (other.group, other.version, other.plural)
    }
}

impl Eq for Resource {}

fn status_name(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

/// A subresource as discovery lists it.
#[derive(Debug, Clone, Copy)]
pub struct Subresource {
    /// Last part of the name, for example `log`.
    pub name: &'static str,
    /// Kind of the body it exchanges.
    pub kind: &'static str,
    /// Group of that body when it is not the resource's own.
    pub group: &'static str,
    /// Version of that body when it is not the resource's own; empty: the resource's own.
    pub version: &'static str,
    /// Verbs served.
    pub verbs: &'static [&'static str],
}

/// A column of a Table.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Heading; kubectl prints it in upper case.
    pub name: &'static str,
    /// `string`, `integer`, `boolean` or `date`.
    pub kind: &'static str,
    /// OpenAPI format; `name` marks the column that names the object.
    pub format: &'static str,
    /// Shown only with `-o wide`.
    pub is_wide: bool,
}

impl Column {
    /// The first column of nearly every kind.
    pub const NAME: Self = Self { name: "Name", kind: "string", format: "name", is_wide: false };
    /// How long ago the object was created.
    pub const AGE: Self = Self::text("Age");

    /// A column of text.
    #[must_use]
    pub const fn text(name: &'static str) -> Self {
        Self { name, kind: "string", format: "", is_wide: false }
    }

    /// A column of whole numbers.
    #[must_use]
    pub const fn integer(name: &'static str) -> Self {
        Self { name, kind: "integer", format: "", is_wide: false }
    }

    /// A column of true and false.
    #[must_use]
    pub const fn boolean(name: &'static str) -> Self {
        Self { name, kind: "boolean", format: "", is_wide: false }
    }

    /// A column of text that only `-o wide` shows.
    #[must_use]
    pub const fn wide(name: &'static str) -> Self {
        Self { name, kind: "string", format: "", is_wide: true }
    }
}

/// The functions that make one kind different from another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Strategy {
    /// Reads an object through the kind's typed struct.
    pub(crate) decode: Decoder,
    /// Fills in what the client may leave out.
    pub(crate) default: fn(&mut Value),
    /// Fills in what depends on the name and the uid of a new object.
    pub(crate) identify: fn(&mut Value),
    /// Drops what a client may not set at creation, beyond metadata and status.
    pub(crate) prepare_create: fn(&mut Value),
    /// Carries over what an update may not change: `(old, new)`.
    pub(crate) prepare_update: fn(&Value, &mut Value),
    /// Checks an object on its own.
    pub(crate) validate: fn(&Value, &mut Errors),
    /// Checks a new object, beyond what `validate` says of it.
    pub(crate) validate_create: fn(&Value, &mut Errors),
    /// Checks a change, beyond what `validate` says of the new object: `(old, new)`.
    pub(crate) validate_update: fn(&Value, &Value, &mut Errors),
    /// What the server accepts and ignores.
    pub(crate) warnings: fn(&Value) -> Vec<String>,
    /// Which names objects may have.
    pub(crate) check_name: fn(&str) -> Result<(), &'static str>,
    /// The cells of a table row.
    pub(crate) cells: fn(&Value, Timestamp) -> Vec<Value>,
}

impl Strategy {
    /// A kind about which nothing is special.
    pub(crate) const fn plain(decode: Decoder) -> Self {
        Self {
            decode,
            default: |_| {},
            identify: |_| {},
            prepare_create: |_| {},
            prepare_update: |_, _| {},
            validate: |_, _| {},
            validate_create: |_, _| {},
            validate_update: |_, _, _| {},
            warnings: |_| Vec::new(),
            check_name: crate::api::names::check_dns1123_subdomain,
            cells: crate::api::table::name_and_age,
        }
    }
}

/// Every built-in resource, in the order discovery lists them.
#[must_use]
pub fn resources() -> &'static [Resource] {
    kinds::ALL
}

/// The resource a URL names.
#[must_use]
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    resources()
        .iter()
        .find(|res| res.group == group && res.version == version && res.plural == plural)
}

/// The resource of a kind, as `apiVersion` and `kind` of a body name it.
#[must_use]
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    resources().iter().find(|res| res.group == group && res.version == version && res.kind == kind)
}

/// Whether objects of `resource` in `namespace` are kept in the leader's memory only: events, and
/// the leases by which nodes say that they live.
#[must_use]
pub fn is_volatile(resource: &Resource, namespace: Option<&str>) -> bool {
    resource.is_volatile
        || (resource.plural == "leases"
            && resource.group == "coordination.k8s.io"
            && namespace == Some("kube-node-lease"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_found_by_url_and_by_kind() {
        let by_url = find("apps", "v1", "deployments").unwrap();
        assert_eq!(by_url.kind, "Deployment");
        assert_eq!(Some(by_url), find_kind("apps", "v1", "Deployment"));
        assert!(find("apps", "v1beta1", "deployments").is_none());
        assert!(find("", "v1", "deployments").is_none());
    }

    #[test]
    fn rows_are_unique_and_complete() {
        for (at, res) in resources().iter().enumerate() {
            assert_eq!(res.list_kind, format!("{}List", res.kind));
            assert_eq!(res.singular, res.kind.to_lowercase());
            assert!(!res.columns.is_empty(), "{}", res.kind);
            assert!(resources().iter().skip(at + 1).all(|other| other != res), "{}", res.kind);
        }
    }

    #[test]
    fn events_and_node_leases_are_volatile_and_nothing_else_is() {
        let event = find("", "v1", "events").unwrap();
        let lease = find("coordination.k8s.io", "v1", "leases").unwrap();
        let pod = find("", "v1", "pods").unwrap();
        assert!(is_volatile(event, Some("default")));
        assert!(is_volatile(lease, Some("kube-node-lease")));
        assert!(!is_volatile(lease, Some("kube-system")));
        assert!(!is_volatile(pod, Some("kube-node-lease")));
    }
}
