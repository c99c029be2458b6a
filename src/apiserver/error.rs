//! Errors as clients read them.

use axum::body::Body;
use http::{HeaderValue, Response, StatusCode, header};

use crate::api::meta;
use crate::api::status::{OBJECT_MODIFIED, Status};
use crate::store::{Key, StoreError};

/// A request's failure: the `Status` to send. Boxed, since the way of success is the common one.
#[derive(Debug)]
pub(super) struct ApiError(pub(super) Box<Status>);

impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        Self(Box::new(status))
    }
}

impl ApiError {
    /// What a store error about `key` means to a client. Paths and peers stay in the log.
    pub(super) fn store(error: StoreError, key: &Key) -> Self {
        let (res, name) = (key.resource, key.name.as_str());
        match error {
            StoreError::NotFound => Status::not_found(res, name).into(),
            StoreError::Exists => Status::already_exists(res, name).into(),
            StoreError::Conflict { .. } => Status::conflict(res, name, OBJECT_MODIFIED).into(),
            other => other.into(),
        }
    }

    pub(super) fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.0.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let code = self.status_code();
        let retry_after = self.0.details.as_ref().and_then(|d| d.retry_after_seconds);
        let mut response = super::response::json(code, &self.0.to_value());
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        let text = error.to_string();
        let status = match error {
            StoreError::Compacted { asked, oldest } => {
                Status::expired(format!("too old resource version: {asked} ({oldest})"))
            }
            StoreError::Future { asked, current } => Status::version_too_large(asked, current),
            StoreError::TooLarge(_) => Status::entity_too_large(text),
            StoreError::Unknown(_) => Status::outcome_unknown(text),
            StoreError::NoQuorum { .. } => Status::no_quorum(text),
            StoreError::Unavailable(_) | StoreError::NotLeader | StoreError::DiskFull(_) => {
                Status::unavailable(text)
            }
            _ => {
                tracing::error!(err = %text, "the store failed");
                Status::internal("the store failed; the server's log says why")
            }
        };
        status.into()
    }
}

/// The version an object was sent with; absent is "any".
pub(super) fn sent_revision(object: &serde_json::Value) -> Result<Option<u64>, ApiError> {
    match meta::resource_version(object) {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            Status::bad_request(format!("metadata.resourceVersion: Invalid value: {text:?}")).into()
        }),
    }
}

/// An object that names a version must have been made from the stored one.
pub(super) fn check_revision(
    key: &Key,
    sent: &serde_json::Value,
    current: u64,
) -> Result<(), ApiError> {
    if sent_revision(sent)?.is_some_and(|sent| sent != current) {
        return Err(Status::conflict(key.resource, &key.name, OBJECT_MODIFIED).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_has_waited_for_a_quorum_is_told_at_once_and_not_asked_to_come_back() {
        let errors = [
            StoreError::NoQuorum { waited_ms: 5000 },
            StoreError::Unknown("outcome unknown".to_owned()),
        ];
        for (error, code) in errors.into_iter().zip([503, 504]) {
            let response = ApiError::from(error).into_response();
            assert_eq!(response.status(), code);
            assert_eq!(response.headers().get(header::RETRY_AFTER), None);
        }
        let elsewhere = ApiError::from(StoreError::NotLeader).into_response();
        assert_eq!(elsewhere.headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn a_version_that_is_named_must_be_the_stored_one() {
        let maps = crate::api::find("", "v1", "configmaps").unwrap();
        let key = Key::new(maps, Some("default"), "a");
        let sent = |version: &str| json!({"metadata": {"resourceVersion": version}});
        assert!(check_revision(&key, &json!({}), 7).is_ok());
        assert!(check_revision(&key, &sent("7"), 7).is_ok());
        assert_eq!(check_revision(&key, &sent("6"), 7).unwrap_err().0.code, 409);
        assert_eq!(check_revision(&key, &sent("x"), 7).unwrap_err().0.code, 400);
    }

    #[test]
    fn what_is_too_large_is_413_and_says_so() {
        let status = ApiError::from(StoreError::TooLarge("too much".to_owned())).0;
        assert_eq!((status.code, status.reason.as_str()), (413, "RequestEntityTooLarge"));
    }
}
