//! Ways to answer. A write that fails is a client that went away: there is nobody to tell.

use wasip3::http::types::{ErrorCode, Fields, Request, Response, Trailers};
use wasip3::wit_bindgen::{FutureReader, StreamReader};
use wasip3::{spawn_local, wit_future, wit_stream};

use crate::place;

/// What a body ends with.
pub type End = FutureReader<Result<Option<Trailers>, ErrorCode>>;

/// Answers with a text.
pub fn text(status: u16, text: String) -> Response {
    let length = ("content-length".to_owned(), text.len().to_string().into_bytes());
    let headers = headers(b"text/plain; charset=utf-8", Some(length));
    let (mut writer, reader) = wit_stream::new();
    let response = start(status, headers, reader, no_trailers());
    // Nobody reads before the response is returned, so the write needs a task of its own.
    spawn_local(async move {
        let _unread = writer.write_all(text.into_bytes()).await;
    });
    response
}

/// Answers with the request's own body: the host joins the two streams.
pub fn echo(request: Request) -> Response {
    let content_type = content_type(&request.get_headers());
    let (body, end) = Request::consume_body(request, accepted());
    start(200, headers(&content_type, None), body, end)
}

/// Answers with another server's answer.
pub fn relay(response: Response) -> Response {
    let content_type = content_type(&response.get_headers());
    let status = response.get_status_code();
    let (body, end) = Response::consume_body(response, accepted());
    start(status, headers(&content_type, None), body, end)
}

/// The end of a body without trailers.
pub fn no_trailers() -> End {
    // The writer's drop sends the default.
    let (_writer, reader) = wit_future::new(|| Ok(None));
    reader
}

/// Tells the sender of a body that we have nothing against it.
fn accepted() -> FutureReader<Result<(), ErrorCode>> {
    let (_writer, reader) = wit_future::new(|| Ok(()));
    reader
}

fn start(status: u16, headers: Fields, body: StreamReader<u8>, end: End) -> Response {
    let (response, _sent) = Response::new(headers, Some(body), end);
    // Refuses only what is no status code, and all ours are.
    let _valid = response.set_status_code(status);
    response
}

fn headers(content_type: &[u8], extra: Option<(String, Vec<u8>)>) -> Fields {
    let mut entries = vec![
        ("content-type".to_owned(), content_type.to_vec()),
        ("x-edgeorc-pod".to_owned(), place().0.clone().into_bytes()),
    ];
    entries.extend(extra);
    Fields::from_list(&entries).unwrap_or_else(|_| Fields::new())
}

fn content_type(headers: &Fields) -> Vec<u8> {
    let found = headers.get("content-type").into_iter().next();
    found.unwrap_or_else(|| b"application/octet-stream".to_vec())
}
