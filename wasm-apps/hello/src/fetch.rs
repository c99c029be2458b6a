//! Asks another server and passes its answer on.

use wasip2::http::outgoing_handler;
use wasip2::http::types::{
    Fields, IncomingResponse, OutgoingBody, OutgoingRequest, ResponseOutparam, Scheme,
};

use crate::reply;

/// Answers with what a GET of `url` answers: status, content type and body.
pub fn relay(url: &str, out: ResponseOutparam) {
    let response = match get(url) {
        Ok(response) => response,
        Err(reason) => return reply::text(out, 502, &format!("cannot fetch {url}: {reason}\n")),
    };
    let content_type = response.headers().get("content-type").into_iter().next();
    let content_type = content_type.unwrap_or_else(|| b"application/octet-stream".to_vec());
    let Ok(body) = response.consume() else {
        return reply::text(out, 502, &format!("cannot fetch {url}: no body\n"));
    };
    let Ok(input) = body.stream() else {
        return reply::text(out, 502, &format!("cannot fetch {url}: no body stream\n"));
    };
    reply::stream(out, response.status(), &content_type, &input);
}

fn get(url: &str) -> Result<IncomingResponse, String> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        _ => return Err("not an http:// or https:// URL".to_owned()),
    };
    let split = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(split);
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };

    let request = OutgoingRequest::new(Fields::new());
    request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(&target)))
        .map_err(|()| "not a valid URL".to_owned())?;
    let body = request.body().map_err(|()| "no request body".to_owned())?;
    let pending = outgoing_handler::handle(request, None).map_err(|code| format!("{code:?}"))?;
    OutgoingBody::finish(body, None).map_err(|code| format!("{code:?}"))?;

    pending.subscribe().block();
    match pending.get() {
        Some(Ok(Ok(response))) => Ok(response),
        Some(Ok(Err(code))) => Err(format!("{code:?}")),
        Some(Err(())) | None => Err("the host gave no answer".to_owned()),
    }
}
