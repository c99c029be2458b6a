//! The files of a folder as responses.

use std::path::Path;

use static_files::{Body as FileBody, Question, answer};

use crate::http::{Body, Request, Response};

/// Answers a request for a file below `root`.
pub(crate) fn respond(root: &Path, request: &Request) -> Response {
    // The server leaves the body of a HEAD away itself, and needs it for the length.
    let method = if request.method == "HEAD" { "GET" } else { &request.method };
    let question = Question {
        method,
        target: &request.target,
        range: request.headers.get("range"),
        if_range: request.headers.get("if-range"),
        if_none_match: request.headers.get("if-none-match"),
    };
    let answer = answer(root, &question, None);
    let body = match answer.body {
        FileBody::Empty => Body::Text(String::new()),
        FileBody::Text(text) => Body::Text(text),
        FileBody::File { path, first, length } => Body::File(path, first, length),
    };
    Response { status: answer.status, headers: answer.headers, body }
}
