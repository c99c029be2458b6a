//! Kinds that are served in a second version beside the stored one. Most say the same in the same
//! words, so that a conversion changes `apiVersion` and nothing else; the others have a conversion.

use std::sync::LazyLock;

use serde_json::Value;

use crate::api::kinds;
use crate::api::resource::{Resource, resources};

/// A version beside the stored one.
#[derive(Debug)]
pub struct Alias {
    /// `group/version` as clients ask for it.
    pub asked: &'static str,
    /// `group/version` as objects are stored.
    pub stored: &'static str,
    /// The version alone.
    pub version: &'static str,
    /// The kinds that have it.
    plurals: &'static [&'static str],
    /// The two have different fields.
    pub has_own_fields: bool,
    /// Makes an object that a client sends, or applies, one of the stored version.
    pub to_stored: fn(&mut Value),
    /// Shows a stored object in this version.
    pub to_asked: fn(&mut Value),
}

impl PartialEq for Alias {
    fn eq(&self, other: &Self) -> bool {
        (self.asked, self.stored) == (other.asked, other.stored)
    }
}

impl Eq for Alias {}

fn same(_: &mut Value) {}

const V1: &str = "gateway.networking.k8s.io/v1";
const V1BETA1: &str = "gateway.networking.k8s.io/v1beta1";

static ALIASES: [Alias; 3] = [
    Alias {
        asked: V1BETA1,
        stored: V1,
        version: "v1beta1",
        plurals: &["gatewayclasses", "gateways", "httproutes"],
        has_own_fields: false,
        to_stored: same,
        to_asked: same,
    },
    Alias {
        asked: V1,
        stored: V1BETA1,
        version: "v1",
        plurals: &["referencegrants"],
        has_own_fields: false,
        to_stored: same,
        to_asked: same,
    },
    Alias {
        asked: "autoscaling/v1",
        stored: "autoscaling/v2",
        version: "v1",
        plurals: &["horizontalpodautoscalers"],
        has_own_fields: true,
        to_stored: kinds::from_v1,
        to_asked: kinds::to_v1,
    },
];

/// The alias that a path names, and the same path in the stored version.
#[must_use]
pub fn asked(path: &str) -> Option<(&'static Alias, String)> {
    let rest = path.strip_prefix("/apis/")?;
    ALIASES.iter().find_map(|alias| {
        let rest = rest.strip_prefix(alias.asked)?.strip_prefix('/')?;
        let mut parts = rest.split('/');
        let plural = match (parts.next(), parts.next(), parts.next()) {
            (Some("namespaces"), Some(_), Some(plural)) => plural,
            (plural, ..) => plural?,
        };
        let is_it = alias.plurals.contains(&plural);
        is_it.then(|| (alias, format!("/apis/{}/{rest}", alias.stored)))
    })
}

/// Rows for discovery and the OpenAPI documents: the stored ones, and those under their other
/// version.
pub fn served() -> impl Iterator<Item = &'static Resource> {
    static OTHERS: LazyLock<Vec<Resource>> = LazyLock::new(rows);
    resources().iter().chain(OTHERS.iter())
}

fn rows() -> Vec<Resource> {
    let of = |alias: &'static Alias| {
        let is_it = |row: &&Resource| {
            row.api_version() == alias.stored && alias.plurals.contains(&row.plural)
        };
        resources().iter().filter(is_it).map(|row| Resource { version: alias.version, ..*row })
    };
    ALIASES.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_the_other_version_lead_to_the_stored_one() {
        let to = |path: &str| asked(path).map(|(_, path)| path);
        let is = |path: &str| Some(path.to_owned());
        let g = "/apis/gateway.networking.k8s.io";
        assert_eq!(
            to(&format!("{g}/v1beta1/gatewayclasses/c")),
            is(&format!("{g}/v1/gatewayclasses/c"))
        );
        assert_eq!(
            to(&format!("{g}/v1beta1/namespaces/n/httproutes/r/status")),
            is(&format!("{g}/v1/namespaces/n/httproutes/r/status"))
        );
        assert_eq!(
            to(&format!("{g}/v1/referencegrants")),
            is(&format!("{g}/v1beta1/referencegrants"))
        );
        for stored in
            ["v1/gateways", "v1beta1/referencegrants", "v1beta1", "v1beta1/pods", "v1beta1/x"]
        {
            assert_eq!(to(&format!("{g}/{stored}")), None, "{stored}");
        }
        assert_eq!(to("/apis/apps/v1/deployments"), None);
        assert_eq!(to("/api/v1/pods"), None);
    }

    #[test]
    fn each_version_has_its_rows() {
        let rows = rows();
        let names: Vec<_> = rows.iter().map(|row| (row.version, row.plural)).collect();
        assert_eq!(
            names,
            [
                ("v1beta1", "gatewayclasses"),
                ("v1beta1", "gateways"),
                ("v1beta1", "httproutes"),
                ("v1", "referencegrants"),
                ("v1", "horizontalpodautoscalers"),
            ]
        );
    }
}
