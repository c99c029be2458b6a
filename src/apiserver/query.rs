//! Query parameters of Kubernetes requests.

use crate::api::Resource;
use crate::api::selector::{FieldSelector, LabelSelector};
use crate::api::status::Status;
use crate::apiserver::error::ApiError;

/// Largest page a client may ask for; larger limits are lowered to it.
const LIMIT_MAX: usize = 10_000;

/// The parameters of one request, parsed on demand.
#[derive(Debug, Clone, Default)]
pub(super) struct Query(Vec<(String, String)>);

/// What unknown fields in a body lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Self {
        let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key), decode(value))
                })
                .collect(),
        )
    }

    /// The first value of `key`; an empty one counts as absent.
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        let found = self.0.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
        found.filter(|value| !value.is_empty())
    }

    /// Every value of `key`, in order.
    pub(super) fn get_all(&self, key: &str) -> Vec<&str> {
        self.0.iter().filter(|(k, _)| k == key).map(|(_, value)| value.as_str()).collect()
    }

    /// `true`, `1`, or present without a value.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .is_some_and(|(_, value)| !matches!(value.as_str(), "false" | "0"))
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<u64>, ApiError> {
        self.get(key)
            .map(|text| {
                text.parse().map_err(|_| {
                    Status::bad_request(format!(
                        "{key}: Invalid value: {text:?}: must be a whole number"
                    ))
                    .into()
                })
            })
            .transpose()
    }

    pub(super) fn labels(&self) -> Result<LabelSelector, ApiError> {
        let text = self.get("labelSelector").unwrap_or_default();
        LabelSelector::parse(text).map_err(|cause| Status::bad_request(cause.to_string()).into())
    }

    pub(super) fn fields(&self, resource: &Resource) -> Result<FieldSelector, ApiError> {
        let text = self.get("fieldSelector").unwrap_or_default();
        FieldSelector::parse(resource, text)
            .map_err(|cause| Status::bad_request(cause.to_string()).into())
    }

    pub(super) fn limit(&self) -> Result<usize, ApiError> {
        let limit = self.number("limit")?.unwrap_or(0);
        Ok(usize::try_from(limit).unwrap_or(LIMIT_MAX).min(LIMIT_MAX))
    }

    pub(super) fn is_dry_run(&self) -> Result<bool, ApiError> {
        match self.get("dryRun") {
            None => Ok(false),
            Some("All") => Ok(true),
            Some(other) => Err(Status::bad_request(format!(
                "dryRun: Unsupported value: {other:?}: supported values: \"All\""
            ))
            .into()),
        }
    }

    pub(super) fn field_validation(&self) -> Result<FieldValidation, ApiError> {
        match self.get("fieldValidation") {
            None | Some("Warn") => Ok(FieldValidation::Warn),
            Some("Ignore") => Ok(FieldValidation::Ignore),
            Some("Strict") => Ok(FieldValidation::Strict),
            Some(other) => Err(Status::bad_request(format!(
                "fieldValidation: Unsupported value: {other:?}: supported values: \"Ignore\", \"Warn\", \"Strict\""
            ))
            .into()),
        }
    }
}

/// Undoes percent-encoding and `+`.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let mut ahead = rest.clone();
                let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
                if let (Some(high), Some(low)) = (hex(ahead.next()), hex(ahead.next())) {
                    bytes.push(u8::try_from(high * 16 + low).unwrap_or(b'%'));
                    rest = ahead;
                } else {
                    bytes.push(b'%');
                }
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_decoded() {
        let query = Query::parse(Some("a=b%3Dc%2C+d&watch&x=&y=%zz"));
        assert_eq!(query.get("a"), Some("b=c, d"));
        assert!(query.is_set("watch"));
        assert_eq!(query.get("x"), None);
        assert_eq!(query.get("y"), Some("%zz"));
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        assert!(Query::parse(Some("dryRun=Some")).is_dry_run().is_err());
        assert!(Query::parse(Some("fieldValidation=Hard")).field_validation().is_err());
        assert!(Query::parse(Some("limit=many")).limit().is_err());
        assert_eq!(Query::parse(Some("limit=99999999")).limit().unwrap(), LIMIT_MAX);
    }
}
