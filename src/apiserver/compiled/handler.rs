//! Answers questions for code.

use std::io::SeekFrom;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, State};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use serde_json::json;
use tokio::io::AsyncSeekExt as _;
use tokio_util::io::ReaderStream;

use crate::api::compiled_code::{
    self, Absence, COMPONENT_BYTES_MAX, NoCode, ONLY_HERE, TICKET_HEADER, Ticket,
};
use crate::apiserver::compiled::jobs::{self, Reach};
use crate::apiserver::compiled::{Compiled, Key, receive};
use crate::apiserver::query::Query;
use crate::apiserver::{access, registry, response};

/// How long a question waits for the compiler before it is answered "later".
const LOOK: Duration = Duration::from_secs(1);
/// Components of nodes that may lie here until they are compiled.
const BROUGHT_MAX: usize = 8;

/// Answers by method.
pub(super) async fn respond(
    State(compiled): State<Compiled>,
    Path((engine, component)): Path<(String, String)>,
    request: Request<Body>,
) -> Response<Body> {
    match access::user(&request) {
        Ok(user) if access::may_use_compiled(&user) => {}
        Ok(_) => return refusal(StatusCode::FORBIDDEN, "compiled code is for nodes"),
        Err(error) => return error.into_response(),
    }
    if !compiled_code::is_sha256(&engine) || !compiled_code::is_sha256(&component) {
        return refusal(StatusCode::BAD_REQUEST, "engine and component are 64 hex digits each");
    }
    let key = Key { engine, component };
    let reach = if request.uri().query() == Some(ONLY_HERE) { Reach::Here } else { Reach::Fleet };
    match *request.method() {
        Method::GET => get(&compiled, &key, reach, request.headers()).await,
        Method::HEAD => head(&compiled, &key).await,
        Method::PUT => put(&compiled, &key, request).await,
        _ => refusal(StatusCode::METHOD_NOT_ALLOWED, "the method is not supported here"),
    }
}

fn refusal(code: StatusCode, message: &str) -> Response<Body> {
    response::json(code, &json!({ "message": message }))
}

fn absent(none: &NoCode) -> Response<Body> {
    let code = match none.reason {
        Absence::OtherEngine | Absence::NoComponent => StatusCode::NOT_FOUND,
        Absence::Refused => StatusCode::UNPROCESSABLE_ENTITY,
        Absence::Unfinished => StatusCode::SERVICE_UNAVAILABLE,
    };
    response::json(code, &json!(none))
}

/// Says whether the code is on this server's shelf. Starts nothing.
async fn head(compiled: &Compiled, key: &Key) -> Response<Body> {
    match shelved(compiled, key, None).await {
        Some(answer) => answer.map(|_| Body::empty()),
        None => {
            let mut answer = Response::new(Body::empty());
            *answer.status_mut() = StatusCode::NOT_FOUND;
            answer
        }
    }
}

async fn get(compiled: &Compiled, key: &Key, reach: Reach, headers: &HeaderMap) -> Response<Body> {
    let start = registry::range_start(headers);
    if let Some(answer) = shelved(compiled, key, start).await {
        return answer;
    }
    let Some(job) = jobs::join(compiled, key, reach) else {
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "too much is being compiled");
    };
    match tokio::time::timeout(LOOK, jobs::ended(job)).await {
        Err(_) => response::json(StatusCode::ACCEPTED, &json!({"message": "it is being compiled"})),
        Ok(Err(none)) => absent(&none),
        Ok(Ok(())) => match shelved(compiled, key, start).await {
            Some(answer) => answer,
            None => refusal(StatusCode::SERVICE_UNAVAILABLE, "the code is gone again"),
        },
    }
}

/// The code with its ticket, from byte `start` on, if it is here.
async fn shelved(compiled: &Compiled, key: &Key, start: Option<u64>) -> Option<Response<Body>> {
    let (statement, path) = compiled.shelf.lock().take(key)?;
    let opened = tokio::fs::File::open(&path).await;
    let size = match &opened {
        Ok(file) => file.metadata().await.map(|meta| meta.len()).ok(),
        Err(_) => None,
    };
    let (Ok(mut file), true) = (opened, size == Some(statement.bytes)) else {
        // Somebody deleted it, or the disk lost its end.
        compiled.shelf.lock().forget(key);
        return None;
    };
    let signed = match compiled.config.identity.sign(&statement.message()) {
        Ok(signed) => signed,
        Err(err) => {
            tracing::warn!(%err, "compiled code cannot be signed");
            return None;
        }
    };
    let size = statement.bytes;
    let ticket = Ticket { statement, certificate: signed.certificate, signature: signed.signature };
    let from = start.filter(|start| *start < size).unwrap_or(0);
    file.seek(SeekFrom::Start(from)).await.ok()?;
    let mut answer = Response::new(Body::from_stream(ReaderStream::new(file)));
    let headers = answer.headers_mut();
    headers.insert(TICKET_HEADER, HeaderValue::from_str(&ticket.to_text()).ok()?);
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size - from));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if from > 0 {
        let range = format!("bytes {from}-{}/{size}", size.saturating_sub(1));
        headers.insert(header::CONTENT_RANGE, HeaderValue::from_str(&range).ok()?);
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    Some(answer)
}

/// Takes a component that is in no registry of this cluster, or passes it on to the server it is for.
async fn put(compiled: &Compiled, key: &Key, request: Request<Body>) -> Response<Body> {
    let query = Query::parse(request.uri().query());
    let me = &compiled.context.node_name;
    let to = query.get("to").unwrap_or(me).to_owned();
    if to != *me {
        let others = compiled.context.store.other_servers(me);
        if !others.contains(&to) {
            return refusal(StatusCode::NOT_FOUND, "there is no such server");
        }
        return match compiled.context.forward.server(&to, request).await {
            Ok(answer) => answer,
            Err(error) => error.into_response(),
        };
    }
    if compiled.config.maker.engine() != Some(&key.engine) {
        return refusal(StatusCode::NOT_FOUND, "this server does not compile for this engine");
    }
    let later = || response::json(StatusCode::ACCEPTED, &json!({"message": "it will be compiled"}));
    let is_done = compiled.shelf.lock().take(key).is_some();
    if is_done || compiled.jobs.has_brought(&key.component) {
        return later();
    }
    let temporary = match compiled.shelf.lock().temporary() {
        Ok(temporary) => temporary,
        Err(_) => return refusal(StatusCode::INSUFFICIENT_STORAGE, "the disk refused"),
    };
    let received = receive::to_file(request.into_body(), &temporary, COMPONENT_BYTES_MAX).await;
    let refused = match received {
        Ok((digest, _)) if digest != key.component => {
            Some((StatusCode::BAD_REQUEST, "the component has another digest"))
        }
        Ok(_) if !compiled.jobs.bring(&key.component, temporary.clone(), BROUGHT_MAX) => {
            Some((StatusCode::TOO_MANY_REQUESTS, "too many components wait to be compiled"))
        }
        Ok(_) => None,
        Err(_) => Some((StatusCode::BAD_REQUEST, "the component did not arrive whole")),
    };
    if let Some((code, message)) = refused {
        let _ = tokio::fs::remove_file(&temporary).await;
        // Another node may have brought it meanwhile.
        let is_here = compiled.jobs.has_brought(&key.component);
        return if is_here { later() } else { refusal(code, message) };
    }
    // Nobody may ask again: then it is compiled and lies on the shelf all the same.
    let job = jobs::join(&Arc::clone(compiled), key, Reach::Here);
    if job.is_none_or(|job| job.borrow().is_some()) {
        // It has failed a moment ago, or there is no place for it: nobody comes for the file.
        compiled.jobs.forget(&key.component);
    }
    later()
}
