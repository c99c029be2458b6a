//! Uploads of blobs: in one piece, in pieces, or taken from another repository.

use axum::body::Body;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};

use crate::apiserver::context::Context;
use crate::apiserver::query::Query;
use crate::apiserver::registry::handler::{Answer, DIGEST_HEADER, not_allowed, with_headers};
use crate::apiserver::registry::name::{self, OciError};
use crate::apiserver::registry::replicas::{hold, replicate};

/// Answers a request for the upload `session`; without one it begins one.
pub(super) async fn respond(
    context: &Context,
    user: &str,
    repository: &str,
    session: &str,
    query: &Query,
    request: Request<Body>,
) -> Answer {
    let uploads = &context.registry.uploads;
    match (request.method().clone(), session) {
        (Method::POST, "") => begin(context, user, repository, query, request).await,
        (_, "") => Err(not_allowed()),
        (Method::PATCH, id) => {
            let start = piece_start(request.headers())?;
            match uploads.append(id, start, request.into_body()).await {
                Ok(size) => Ok(session_answer(StatusCode::ACCEPTED, repository, id, size)),
                Err(refused) => refuse(context, repository, id, refused).await,
            }
        }
        (Method::PUT, id) => {
            let digest = query.get("digest").unwrap_or_default();
            name::digest(digest)?;
            let start = piece_start(request.headers())?;
            match uploads.append(id, start, request.into_body()).await {
                Ok(_) => finish(context, repository, id, digest).await,
                Err(refused) => refuse(context, repository, id, refused).await,
            }
        }
        (Method::GET, id) => {
            let size = uploads.size(id).await?;
            Ok(session_answer(StatusCode::NO_CONTENT, repository, id, size))
        }
        (Method::DELETE, id) => {
            uploads.cancel(id).await?;
            Ok(with_headers(StatusCode::NO_CONTENT, &[], Body::empty()))
        }
        _ => Err(not_allowed()),
    }
}

async fn begin(
    context: &Context,
    user: &str,
    repository: &str,
    query: &Query,
    request: Request<Body>,
) -> Answer {
    if let Some(digest) = query.get("mount") {
        // Blobs belong to no repository: whoever may push here may use any that is here.
        let hex = name::digest(digest)?;
        if hold(context, hex).await?.is_some() {
            return Ok(created(repository, digest));
        }
    }
    if let Some(digest) = query.get("digest") {
        name::digest(digest)?;
    }
    let id = context.rng.uuid().to_string();
    context.registry.uploads.begin(&id, user).await?;
    let Some(digest) = query.get("digest") else {
        return Ok(session_answer(StatusCode::ACCEPTED, repository, &id, 0));
    };
    context.registry.uploads.append(&id, None, request.into_body()).await?;
    finish(context, repository, &id, digest).await
}

/// Checks and keeps what was uploaded, and copies it to the other servers.
async fn finish(context: &Context, repository: &str, id: &str, digest: &str) -> Answer {
    let hex = name::digest(digest)?;
    let registry = &context.registry;
    let file = registry.uploads.finish(id, hex).await?;
    registry.blobs.adopt(file, hex).await.map_err(|cause| OciError::io(&cause))?;
    replicate(context, digest).await?;
    Ok(created(repository, digest))
}

fn created(repository: &str, digest: &str) -> Response<Body> {
    let headers = [
        (header::LOCATION, format!("/v2/{repository}/blobs/{digest}")),
        (DIGEST_HEADER, digest.to_owned()),
    ];
    with_headers(StatusCode::CREATED, &headers, Body::empty())
}

/// Where an upload is gone on with, and what is here of it.
fn session_headers(repository: &str, id: &str, size: u64) -> [(header::HeaderName, String); 2] {
    [
        (header::LOCATION, format!("/v2/{repository}/blobs/uploads/{id}")),
        (header::RANGE, format!("0-{}", size.saturating_sub(1))),
    ]
}

fn session_answer(code: StatusCode, repository: &str, id: &str, size: u64) -> Response<Body> {
    with_headers(code, &session_headers(repository, id, size), Body::empty())
}

/// A piece in the wrong place is told which one is wanted.
async fn refuse(context: &Context, repository: &str, id: &str, refused: OciError) -> Answer {
    if !refused.is_out_of_order() {
        return Err(refused);
    }
    let size = context.registry.uploads.size(id).await?;
    let mut answer = refused.into_response();
    let headers =
        with_headers(StatusCode::OK, &session_headers(repository, id, size), Body::empty());
    answer.headers_mut().extend(headers.headers().clone());
    Ok(answer)
}

/// First byte of `Content-Range: 5-9`, which some clients write `bytes 5-9/10`. Without one, a piece
/// follows what is here.
fn piece_start(headers: &HeaderMap) -> Result<Option<u64>, OciError> {
    let Some(range) = headers.get(header::CONTENT_RANGE) else { return Ok(None) };
    let bad = || {
        let text = "Content-Range must be START-END, as many bytes as are sent";
        OciError::new(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", text)
    };
    let text = range.to_str().map_err(|_| bad())?;
    let text = text.strip_prefix("bytes").unwrap_or(text).trim_start_matches([' ', '=']);
    let text = text.split('/').next().unwrap_or_default();
    let (start, end) = text.split_once('-').ok_or_else(bad)?;
    let (start, end): (u64, u64) =
        (start.parse().map_err(|_| bad())?, end.parse().map_err(|_| bad())?);
    let sent = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let sent: Option<u64> = sent.and_then(|text| text.parse().ok());
    let is_right =
        |sent: u64| end.checked_sub(start).and_then(|len| len.checked_add(1)) == Some(sent);
    // A last piece of nothing has a range that says nothing.
    match sent {
        Some(0) => Ok(None),
        Some(sent) if !is_right(sent) => Err(bad()),
        None if end < start => Err(bad()),
        _ => Ok(Some(start)),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_place_of_a_piece_is_read_in_the_forms_that_clients_write() {
        let start = |range: &'static str, sent: &'static str| {
            let headers = HeaderMap::from_iter([
                (header::CONTENT_RANGE, HeaderValue::from_static(range)),
                (header::CONTENT_LENGTH, HeaderValue::from_static(sent)),
            ]);
            piece_start(&headers).ok()
        };
        for range in ["5-9", "bytes 5-9", "bytes 5-9/10", "bytes=5-9"] {
            assert_eq!(start(range, "5"), Some(Some(5)), "{range}");
        }
        assert_eq!(start("5-4", "0"), Some(None));
        for (range, sent) in [("5-9", "4"), ("9-5", "5"), ("x", "5"), ("-9", "10")] {
            assert_eq!(start(range, sent), None, "{range} {sent}");
        }
        assert_eq!(piece_start(&HeaderMap::new()).unwrap(), None);
    }
}
