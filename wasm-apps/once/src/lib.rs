//! A web app whose instances answer one request in their life and trap at the next, as those made with
//! some JavaScript engines do. `/` greets, `/echo` answers with the body, `/trap` always traps.

use std::sync::atomic::{AtomicBool, Ordering};

use wasip2::exports::http::incoming_handler::Guest;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::StreamError;

wasip2::http::proxy::export!(Once);

/// Bytes read at once.
const READ_BYTES: u64 = 16 << 10;

/// Whether this instance has answered.
static HAS_ANSWERED: AtomicBool = AtomicBool::new(false);

struct Once;

impl Guest for Once {
    fn handle(request: IncomingRequest, answer: ResponseOutparam) {
        let path = request.path_with_query().unwrap_or_default();
        if HAS_ANSWERED.swap(true, Ordering::Relaxed) || path == "/trap" {
            std::process::abort();
        }
        let text = if path == "/echo" { body_of(&request) } else { b"Hello, once\n".to_vec() };
        let response = OutgoingResponse::new(Fields::new());
        let Ok(body) = response.body() else { return };
        ResponseOutparam::set(answer, Ok(response));
        if let Ok(out) = body.write() {
            // A write that fails is a client that went away.
            let _gone = out.blocking_write_and_flush(&text);
        }
        let _gone = OutgoingBody::finish(body, None);
    }
}

fn body_of(request: &IncomingRequest) -> Vec<u8> {
    let mut all = Vec::new();
    let Ok(body) = request.consume() else { return all };
    let Ok(stream) = body.stream() else { return all };
    loop {
        match stream.blocking_read(READ_BYTES) {
            Ok(bytes) => all.extend(bytes),
            Err(StreamError::Closed | StreamError::LastOperationFailed(_)) => return all,
        }
    }
}
