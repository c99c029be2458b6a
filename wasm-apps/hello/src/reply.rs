//! Ways to answer. A write that fails is a client that went away: there is nobody to tell.

use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::{InputStream, StreamError};

use crate::place;

/// Longest write that `blocking-write-and-flush` takes, in bytes.
const WRITE_BYTES_MAX: usize = 4096;
/// Most that is moved between two streams in one call, in bytes.
const SPLICE_BYTES_MAX: u64 = 64 * 1024;

/// Answers with a text.
pub fn text(out: ResponseOutparam, status: u16, text: &str) {
    let length = text.len().to_string().into_bytes();
    let length = ("content-length".to_owned(), length);
    let Some(body) = start(out, status, b"text/plain; charset=utf-8", Some(length)) else { return };
    if let Ok(stream) = body.write() {
        for chunk in text.as_bytes().chunks(WRITE_BYTES_MAX) {
            if stream.blocking_write_and_flush(chunk).is_err() {
                return;
            }
        }
    }
    let _gone = OutgoingBody::finish(body, None);
}

/// Answers with the request's own body.
pub fn echo(request: &IncomingRequest, out: ResponseOutparam) {
    let content_type = request.headers().get("content-type").into_iter().next();
    let content_type = content_type.unwrap_or_else(|| b"application/octet-stream".to_vec());
    let Ok(incoming) = request.consume() else { return text(out, 500, "no request body\n") };
    let Ok(input) = incoming.stream() else { return text(out, 500, "no request stream\n") };
    stream(out, 200, &content_type, &input);
}

/// Answers with what a stream gives, as it comes.
pub fn stream(out: ResponseOutparam, status: u16, content_type: &[u8], input: &InputStream) {
    let Some(body) = start(out, status, content_type, None) else { return };
    if let Ok(output) = body.write() {
        let end = loop {
            if let Err(end) = output.blocking_splice(input, SPLICE_BYTES_MAX) {
                break end;
            }
        };
        // Dropped unfinished, the body tells the client that it was cut short.
        if matches!(end, StreamError::LastOperationFailed(_)) || output.blocking_flush().is_err() {
            return;
        }
    }
    let _gone = OutgoingBody::finish(body, None);
}

/// Sends the head. `None` when the host gives no body to write to.
fn start(
    out: ResponseOutparam,
    status: u16,
    content_type: &[u8],
    extra: Option<(String, Vec<u8>)>,
) -> Option<OutgoingBody> {
    let mut entries = vec![
        ("content-type".to_owned(), content_type.to_vec()),
        ("x-edgeorc-pod".to_owned(), place().0.clone().into_bytes()),
    ];
    entries.extend(extra);
    let headers = Fields::from_list(&entries).unwrap_or_else(|_| Fields::new());
    let response = OutgoingResponse::new(headers);
    // Refuses only what is no status code, and all ours are.
    let _valid = response.set_status_code(status);
    let body = response.body().ok();
    ResponseOutparam::set(out, Ok(response));
    body
}
