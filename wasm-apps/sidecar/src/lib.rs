//! Shares a pod with `hello`: answers every request with its pod and how many it has seen.

use std::sync::atomic::{AtomicU64, Ordering};

use wasip2::cli::environment::get_environment;
use wasip2::http::types::{
    Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam,
};

wasip2::http::proxy::export!(Sidecar);

struct Sidecar;

/// Requests seen by this instance.
static SEEN: AtomicU64 = AtomicU64::new(0);

impl wasip2::exports::http::incoming_handler::Guest for Sidecar {
    fn handle(_request: IncomingRequest, out: ResponseOutparam) {
        let seen = SEEN.fetch_add(1, Ordering::Relaxed) + 1;
        let pod = get_environment()
            .into_iter()
            .find_map(|(name, value)| (name == "POD_NAME").then_some(value))
            .unwrap_or_else(|| "unknown".to_owned());
        let text = format!("sidecar of {pod}, seen {seen}\n");

        let headers = Fields::from_list(&[
            ("content-type".to_owned(), b"text/plain; charset=utf-8".to_vec()),
            ("content-length".to_owned(), text.len().to_string().into_bytes()),
        ]);
        let response = OutgoingResponse::new(headers.unwrap_or_else(|_| Fields::new()));
        let body = response.body();
        ResponseOutparam::set(out, Ok(response));
        // A failed write is a client that went away; there is nobody to tell.
        if let Ok(body) = body {
            if let Ok(stream) = body.write() {
                let _gone = stream.blocking_write_and_flush(text.as_bytes());
            }
            let _gone = OutgoingBody::finish(body, None);
        }
    }
}
