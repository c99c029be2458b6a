//! Asks another server and passes its answer on.

use wasip3::http::client;
use wasip3::http::types::{Fields, Request, Response, Scheme};

use crate::reply;

/// Answers with what a GET of `url` answers: status, content type and body.
pub async fn relay(url: &str) -> Response {
    match get(url).await {
        Ok(response) => reply::relay(response),
        Err(reason) => reply::text(502, format!("cannot fetch {url}: {reason}\n")),
    }
}

async fn get(url: &str) -> Result<Response, String> {
    let (scheme, rest) = match url.split_once("://") {
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(("https", rest)) => (Scheme::Https, rest),
        _ => return Err("not an http:// or https:// URL".to_owned()),
    };
    let split = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(split);
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };

    let (request, _sent) = Request::new(Fields::new(), None, reply::no_trailers(), None);
    request
        .set_scheme(Some(&scheme))
        .and_then(|()| request.set_authority(Some(authority)))
        .and_then(|()| request.set_path_with_query(Some(&target)))
        .map_err(|()| "not a valid URL".to_owned())?;
    client::send(request).await.map_err(|code| format!("{code:?}"))
}
