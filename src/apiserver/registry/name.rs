//! Names, tags, digests, and the errors of the registry.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::json;

use crate::apiserver::response;
use crate::store::StoreError;

/// Longest repository name, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// Longest tag, in bytes.
const TAG_BYTES_MAX: usize = 128;
/// Digits of a SHA-256 in hex.
pub(super) const SHA256_HEX: usize = 64;

/// An OCI error: code of the specification, HTTP status, and a sentence.
#[derive(Debug)]
pub(super) struct OciError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl OciError {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(super) fn not_found(code: &'static str, what: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, format!("{what} is not in this registry"))
    }

    /// Nobody that the cluster knows.
    pub(super) fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required")
    }

    /// A piece of an upload does not follow what is here of it.
    pub(super) fn out_of_order(size: u64) -> Self {
        let message = format!("the next piece must begin at byte {size}");
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID", message)
    }

    /// Whether it is one of [`Self::out_of_order`]: the upload can be gone on with.
    pub(super) fn is_out_of_order(&self) -> bool {
        self.status == StatusCode::RANGE_NOT_SATISFIABLE
    }

    pub(super) fn io(cause: &std::io::Error) -> Self {
        tracing::warn!(err = %cause, "the registry cannot use its disk");
        if cause.kind() == std::io::ErrorKind::StorageFull {
            return Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "UNKNOWN",
                "the registry's disk is full",
            );
        }
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", "the registry cannot use its disk")
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let error = json!({"errors": [{"code": self.code, "message": self.message}]});
        response::json(self.status, &error)
    }
}

impl From<StoreError> for OciError {
    fn from(error: StoreError) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNKNOWN", error.to_string())
    }
}

/// The hex part of a `sha256:` digest.
pub(super) fn digest(text: &str) -> Result<&str, OciError> {
    let hex = text.strip_prefix("sha256:").filter(|hex| {
        let is_hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        hex.len() == SHA256_HEX && hex.chars().all(is_hex)
    });
    hex.ok_or_else(|| {
        OciError::new(
            StatusCode::BAD_REQUEST,
            "DIGEST_INVALID",
            format!("{text:?} is no sha256 digest"),
        )
    })
}

/// Checks a repository name: lower-case parts, joined by slashes. A part is words with a separator between
/// each two: a dot, one or two underscores, or hyphens.
pub(super) fn repository(name: &str) -> Result<(), OciError> {
    let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let is_separator =
        |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|b| b == b'-');
    let is_part = |part: &str| {
        let is_edge = |c: Option<char>| c.is_some_and(is_word);
        is_edge(part.chars().next())
            && is_edge(part.chars().last())
            && part.split(is_word).all(is_separator)
    };
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.split('/').all(is_part) {
        return Ok(());
    }
    Err(OciError::new(
        StatusCode::BAD_REQUEST,
        "NAME_INVALID",
        format!("{name:?} is no repository name"),
    ))
}

/// Checks a tag.
pub(super) fn tag(tag: &str) -> Result<(), OciError> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let is_inner = |c: char| is_word(c) || c == '.' || c == '-';
    if tag.len() <= TAG_BYTES_MAX && tag.starts_with(is_word) && tag.chars().all(is_inner) {
        return Ok(());
    }
    Err(OciError::new(StatusCode::BAD_REQUEST, "MANIFEST_INVALID", format!("{tag:?} is no tag")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        for good in ["a", "default/hello", "a/b-c/d.e_f", "a--b__c.d"] {
            assert!(repository(good).is_ok(), "{good}");
        }
        for bad in
            ["", "A", "../x", "a//b", "/a", "a/", "a/..", ".a", "a b", "a..b", "a___b", "a._b"]
        {
            assert!(repository(bad).is_err(), "{bad}");
        }
        assert!(digest(&format!("sha256:{}", "a".repeat(64))).is_ok());
        for bad in ["", "sha256:", "sha512:aa", &format!("sha256:{}", "A".repeat(64))] {
            assert!(digest(bad).is_err(), "{bad}");
        }
        assert!(tag("v1.0-rc_1").is_ok());
        for bad in ["", ".x", "-x", "a/b", &"t".repeat(129)] {
            assert!(tag(bad).is_err(), "{bad}");
        }
    }
}
