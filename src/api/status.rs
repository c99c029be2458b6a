//! `Status` bodies: what a client reads when a request fails, or a delete succeeds.
//!
//! The texts are part of the API: kubectl and people's scripts look for them.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::api::apply::Conflict;
use crate::api::field_error::FieldError;
use crate::api::resource::Resource;

/// The detail of a conflict on `metadata.resourceVersion`.
pub const OBJECT_MODIFIED: &str =
    "the object has been modified; please apply your changes to the latest version and try again";

/// An answer of kind `Status` (`v1`).
#[derive(Debug, Clone, PartialEq)]
pub struct Status {
    /// HTTP status code.
    pub code: u16,
    /// Machine-readable reason.
    pub reason: Reason,
    /// What people read.
    pub message: String,
    /// What it is about.
    pub details: Option<Details>,
    /// A fresh continue token, sent with an expired one.
    pub continue_token: Option<String>,
}

/// Why a request failed, as clients compare it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are those of the Kubernetes API")]
pub enum Reason {
    Success,
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    NotAcceptable,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    Invalid,
    TooManyRequests,
    InternalError,
    ServiceUnavailable,
    Timeout,
}

impl Reason {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "",
            Self::BadRequest => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Gone => "Gone",
            Self::Expired => "Expired",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::Invalid => "Invalid",
            Self::TooManyRequests => "TooManyRequests",
            Self::InternalError => "InternalError",
            Self::ServiceUnavailable => "ServiceUnavailable",
            Self::Timeout => "Timeout",
        }
    }
}

/// What a [`Status`] is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// Name of the object.
    pub name: String,
    /// Group of the resource.
    pub group: String,
    /// Plural of the resource, or the kind where Kubernetes writes the kind.
    pub kind: String,
    /// Uid of the object.
    pub uid: String,
    /// One entry for each thing that is wrong.
    pub causes: Vec<Cause>,
    /// When to come back.
    pub retry_after_seconds: Option<u32>,
}

/// One thing that is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable reason.
    pub reason: String,
    /// What people read.
    pub message: String,
    /// Path of the field.
    pub field: String,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    fn failure(code: u16, reason: Reason, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: None, continue_token: None }
    }

    fn about(mut self, group: &str, kind: &str, name: &str) -> Self {
        self.details = Some(Details {
            name: name.to_owned(),
            group: group.to_owned(),
            kind: kind.to_owned(),
            ..Details::default()
        });
        self
    }

    fn with_retry_after(mut self, seconds: u32) -> Self {
        self.details.get_or_insert_default().retry_after_seconds = Some(seconds);
        self
    }

    /// Adds a cause.
    #[must_use]
    pub fn with_cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        self.details.get_or_insert_default().causes.push(Cause {
            reason: reason.to_owned(),
            message: message.to_owned(),
            field: field.to_owned(),
        });
        self
    }

    /// The answer to a delete that removed the object.
    #[must_use]
    pub fn deleted(res: &Resource, name: &str, uid: &str) -> Self {
        let mut status = Self::failure(200, Reason::Success, "").about(res.group, res.plural, name);
        status.details.get_or_insert_default().uid = uid.to_owned();
        status
    }

    /// 404 for an object.
    #[must_use]
    pub fn not_found(res: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} not found", res.qualified());
        Self::failure(404, Reason::NotFound, message).about(res.group, res.plural, name)
    }

    /// 404 for a URL that names no resource.
    #[must_use]
    pub fn no_such_path() -> Self {
        Self::failure(404, Reason::NotFound, "the server could not find the requested resource")
            .about("", "", "")
    }

    /// 409 for a create of what exists.
    #[must_use]
    pub fn already_exists(res: &Resource, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", res.qualified());
        Self::failure(409, Reason::AlreadyExists, message).about(res.group, res.plural, name)
    }

    /// 409 for a write that was based on something else; see [`OBJECT_MODIFIED`].
    #[must_use]
    pub fn conflict(res: &Resource, name: &str, detail: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {name:?}: {detail}", res.qualified());
        Self::failure(409, Reason::Conflict, message).about(res.group, res.plural, name)
    }

    /// 409 for an apply that others stand against, with a cause for each field.
    #[must_use]
    pub fn apply_conflict(message: impl Into<String>, conflicts: &[Conflict]) -> Self {
        let status = Self::failure(409, Reason::Conflict, message);
        conflicts.iter().fold(status, |status, conflict| {
            let message = format!("conflict with {}", conflict.manager);
            status.with_cause("FieldManagerConflict", &message, &conflict.field)
        })
    }

    /// 422 for the query of a write: `kind` is `PatchOptions`, `UpdateOptions` or `CreateOptions`.
    #[must_use]
    pub fn invalid_options(kind: &str, error: &FieldError) -> Self {
        let message = format!("{kind}.meta.k8s.io \"\" is invalid: {error}");
        Self::failure(422, Reason::Invalid, message).about("meta.k8s.io", kind, "").with_cause(
            error.kind.reason(),
            &error.message,
            &error.field,
        )
    }

    /// 422 with a cause for each error.
    #[must_use]
    pub fn invalid(res: &Resource, name: &str, errors: &[FieldError]) -> Self {
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        let all = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let message = format!("{} {name:?} is invalid: {all}", res.qualified_kind());
        let mut status = Self::failure(422, Reason::Invalid, message);
        status = status.about(res.group, res.kind, name);
        for error in errors {
            status = status.with_cause(error.kind.reason(), &error.message, &error.field);
        }
        status
    }

    /// 422 without an object, for a patch that cannot be applied.
    #[must_use]
    pub fn unprocessable(message: impl Into<String>) -> Self {
        Self::failure(422, Reason::Invalid, message)
    }

    /// 400.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::failure(400, Reason::BadRequest, message)
    }

    /// 401.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::failure(401, Reason::Unauthorized, "Unauthorized")
    }

    /// 403; `name` may be empty for a request on the whole resource.
    #[must_use]
    pub fn forbidden(res: &Resource, name: &str, detail: &str) -> Self {
        let what = res.qualified();
        let message = if name.is_empty() {
            format!("{what} is forbidden: {detail}")
        } else {
            format!("{what} {name:?} is forbidden: {detail}")
        };
        Self::failure(403, Reason::Forbidden, message).about(res.group, res.plural, name)
    }

    /// 403 for a path that is no resource.
    #[must_use]
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        let message = format!("forbidden: User {user:?} cannot {verb} path {path:?}");
        Self::failure(403, Reason::Forbidden, message).about("", "", "")
    }

    /// 405.
    #[must_use]
    pub fn method_not_allowed(res: &Resource, verb: &str) -> Self {
        let message = format!("{verb} is not supported on resources of kind {:?}", res.qualified());
        Self::failure(405, Reason::MethodNotAllowed, message).about(res.group, res.plural, "")
    }

    /// 406; `supported` are media types.
    #[must_use]
    pub fn not_acceptable(supported: &[&str]) -> Self {
        let message =
            format!("only the following media types are accepted: {}", supported.join(", "));
        Self::failure(406, Reason::NotAcceptable, message)
    }

    /// 415; `supported` are media types.
    #[must_use]
    pub fn unsupported_media_type(supported: &[&str]) -> Self {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {}",
            supported.join(", ")
        );
        Self::failure(415, Reason::UnsupportedMediaType, message)
    }

    /// 410 for a resource version or a continue token that history no longer holds.
    #[must_use]
    pub fn expired(message: impl Into<String>) -> Self {
        Self::failure(410, Reason::Expired, message)
    }

    /// 410 with a token that continues a list inconsistently.
    #[must_use]
    pub fn expired_continue(token: String) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list \
            result. You can start a new list without the continue parameter, or use the continue \
            token in this response to retrieve the remainder of the results. Continuing with the \
            provided token results in an inconsistent list - objects that were created, modified, \
            or deleted between the time the first chunk was returned and now may show up in the \
            list.";
        let mut status = Self::expired(message);
        status.continue_token = Some(token);
        status
    }

    /// 413.
    #[must_use]
    pub fn too_large(bytes_max: usize) -> Self {
        let message = format!("Request entity too large: limit is {bytes_max}");
        Self::failure(413, Reason::RequestEntityTooLarge, message)
    }

    /// 413 for anything but a body.
    #[must_use]
    pub fn entity_too_large(message: impl Into<String>) -> Self {
        Self::failure(413, Reason::RequestEntityTooLarge, message)
    }

    /// 429.
    #[must_use]
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        Self::failure(429, Reason::TooManyRequests, message).with_retry_after(retry_after_seconds)
    }

    /// 429 for an eviction that a disruption budget does not allow now. Without a time to come back, as
    /// in Kubernetes: clients that are given one try ten times before they tell anybody.
    #[must_use]
    pub fn disruption_refused(cause: &str) -> Self {
        Self::failure(
            429,
            Reason::TooManyRequests,
            "Cannot evict pod as it would violate the pod's disruption budget.",
        )
        .with_cause("DisruptionBudget", cause, "")
    }

    /// 500 for an eviction of a pod that several disruption budgets select.
    #[must_use]
    pub fn several_budgets() -> Self {
        let message = "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
        Self::failure(500, Reason::InternalError, message)
    }

    /// The same, to come back after `seconds`.
    #[must_use]
    pub fn come_back(self, seconds: u32) -> Self {
        self.with_retry_after(seconds)
    }

    /// The answer to a request that was done and has no object to show.
    #[must_use]
    pub fn done(code: u16) -> Self {
        Self::failure(code, Reason::Success, "")
    }

    /// 500; `message` must say nothing of the inside.
    #[must_use]
    pub fn internal(message: impl Into<String>) -> Self {
        let message = message.into();
        Self::failure(500, Reason::InternalError, format!("Internal error occurred: {message}"))
            .with_cause("", &message, "")
    }

    /// 502: another server's answer may not be passed on.
    #[must_use]
    pub fn bad_gateway(message: impl Into<String>) -> Self {
        Self::failure(502, Reason::InternalError, message)
    }

    /// 503: nothing was done; come back.
    #[must_use]
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::failure(503, Reason::ServiceUnavailable, message).with_retry_after(1)
    }

    /// 503: nothing was done, although it was waited for. Without a time to come back: clients that are
    /// given one try ten times before they tell anybody.
    #[must_use]
    pub fn no_quorum(message: impl Into<String>) -> Self {
        Self::failure(503, Reason::ServiceUnavailable, message)
    }

    /// 504: whether something was done is unknown. Without a time to come back: whoever tries again has
    /// to read first.
    #[must_use]
    pub fn outcome_unknown(message: impl Into<String>) -> Self {
        Self::failure(504, Reason::Timeout, format!("Timeout: {}", message.into()))
    }

    /// 504: whether something was done is unknown; come back.
    #[must_use]
    pub fn timeout(message: impl Into<String>, retry_after_seconds: u32) -> Self {
        let message = format!("Timeout: {}", message.into());
        Self::failure(504, Reason::Timeout, message).with_retry_after(retry_after_seconds)
    }

    /// 504 for a resource version that this server has not reached yet.
    #[must_use]
    pub fn version_too_large(asked: u64, current: u64) -> Self {
        Self::timeout(format!("Too large resource version: {asked}, current: {current}"), 1)
            .with_cause("ResourceVersionTooLarge", "Too large resource version", "")
    }

    /// The body.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut metadata = Map::new();
        if let Some(token) = &self.continue_token {
            metadata.insert("continue".to_owned(), json!(token));
        }
        let word = if self.code < 400 { "Success" } else { "Failure" };
        let mut body = Map::new();
        body.insert("kind".to_owned(), json!("Status"));
        body.insert("apiVersion".to_owned(), json!("v1"));
        body.insert("metadata".to_owned(), Value::Object(metadata));
        body.insert("status".to_owned(), json!(word));
        put_text(&mut body, "message", &self.message);
        put_text(&mut body, "reason", self.reason.as_str());
        if let Some(details) = &self.details {
            body.insert("details".to_owned(), details.to_value());
        }
        // Kubernetes leaves the code out of a success.
        if self.code >= 400 {
            body.insert("code".to_owned(), json!(self.code));
        }
        Value::Object(body)
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut map = Map::new();
        put_text(&mut map, "name", &self.name);
        put_text(&mut map, "group", &self.group);
        put_text(&mut map, "kind", &self.kind);
        put_text(&mut map, "uid", &self.uid);
        if !self.causes.is_empty() {
            let causes = self.causes.iter().map(Cause::to_value).collect();
            map.insert("causes".to_owned(), Value::Array(causes));
        }
        if let Some(seconds) = self.retry_after_seconds {
            map.insert("retryAfterSeconds".to_owned(), json!(seconds));
        }
        Value::Object(map)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut map = Map::new();
        put_text(&mut map, "reason", &self.reason);
        put_text(&mut map, "message", &self.message);
        put_text(&mut map, "field", &self.field);
        Value::Object(map)
    }
}

fn put_text(map: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        map.insert(key.to_owned(), json!(text));
    }
}
