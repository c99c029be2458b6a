//! A web server for the files of a folder, on `wasi:http` 0.2.
//!
//! Serves `$DOCUMENT_ROOT` (`/usr/local/apache2/htdocs`, or nginx's `/usr/share/nginx/html`), which is a volume of the pod; while there
//! is nothing in it, `/` answers `It works!`. Each request is a line on stdout, in the common log
//! format without the clock and the names, which the log of the pod has anyway.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use static_files::{Answer, Body, Question, answer};
use wasip2::http::types::{
    Fields, IncomingRequest, Method, OutgoingBody, OutgoingResponse, ResponseOutparam,
};
use wasip2::io::streams::OutputStream;

wasip2::http::proxy::export!(Httpd);

struct Httpd;

/// Folder when `DOCUMENT_ROOT` is not set: that of the image `httpd`.
const ROOT_DEFAULT: &str = "/usr/local/apache2/htdocs";
/// That of the image `nginx`, if something is mounted there.
const ROOT_OF_NGINX: &str = "/usr/share/nginx/html";
const GREETING: &str = "<html><body><h1>It works!</h1></body></html>\n";
/// Longest write that `blocking-write-and-flush` takes, in bytes.
const WRITE_BYTES_MAX: usize = 4096;

impl wasip2::exports::http::incoming_handler::Guest for Httpd {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let method = match request.method() {
            Method::Get => "GET",
            Method::Head => "HEAD",
            _ => "another",
        };
        let target = request.path_with_query().unwrap_or_else(|| "/".to_owned());
        let headers = request.headers();
        let header = |name: &str| {
            let value = headers.get(name).into_iter().next()?;
            String::from_utf8(value).ok()
        };
        let (range, if_range) = (header("range"), header("if-range"));
        let if_none_match = header("if-none-match");
        let question = Question {
            method,
            target: &target,
            range: range.as_deref(),
            if_range: if_range.as_deref(),
            if_none_match: if_none_match.as_deref(),
        };
        let answer = answer(&root(), &question, Some(GREETING));
        println!("\"{method} {}\" {}", target.escape_default(), answer.status);
        send(out, answer);
    }
}

fn root() -> PathBuf {
    let of_image = || {
        // Of what lies below a mount, the folders above it cannot be seen.
        let is_nginx = Path::new(ROOT_OF_NGINX).is_dir();
        PathBuf::from(if is_nginx { ROOT_OF_NGINX } else { ROOT_DEFAULT })
    };
    std::env::var_os("DOCUMENT_ROOT").map_or_else(of_image, PathBuf::from)
}

/// Sends an answer. A write that fails is a client that went away: there is nobody to tell.
fn send(out: ResponseOutparam, answer: Answer) {
    let entries: Vec<(String, Vec<u8>)> = answer
        .headers
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into_bytes()))
        .collect();
    let headers = Fields::from_list(&entries).unwrap_or_else(|_| Fields::new());
    let response = OutgoingResponse::new(headers);
    // Refuses only what is no status code, and all of these are.
    let _valid = response.set_status_code(answer.status);
    let body = response.body();
    ResponseOutparam::set(out, Ok(response));
    let Ok(body) = body else { return };
    let is_whole = match answer.body {
        Body::Empty => true,
        Body::Text(text) => body.write().is_ok_and(|stream| write(&stream, text.as_bytes())),
        Body::File { path, first, length } => {
            body.write().is_ok_and(|stream| copy(&stream, &path, first, length))
        }
    };
    // Dropped unfinished, the body tells the client that it was cut short.
    if is_whole {
        let _gone = OutgoingBody::finish(body, None);
    }
}

fn write(stream: &OutputStream, bytes: &[u8]) -> bool {
    bytes.chunks(WRITE_BYTES_MAX).all(|chunk| stream.blocking_write_and_flush(chunk).is_ok())
}

/// Copies a part of a file; `false` when not all of it could be read or sent.
fn copy(stream: &OutputStream, path: &Path, first: u64, length: u64) -> bool {
    let Ok(mut file) = File::open(path) else { return false };
    if first > 0 && file.seek(SeekFrom::Start(first)).is_err() {
        return false;
    }
    let mut buffer = [0; WRITE_BYTES_MAX];
    let mut rest = length;
    while rest > 0 {
        let wanted = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
        let Some(room) = buffer.get_mut(..wanted) else { return false };
        let got = match file.read(room) {
            Ok(got) if got > 0 => got,
            // Shorter than a moment ago, or unreadable.
            _ => return false,
        };
        let Some(bytes) = buffer.get(..got) else { return false };
        if !write(stream, bytes) {
            return false;
        }
        rest = rest.saturating_sub(u64::try_from(got).unwrap_or(u64::MAX));
    }
    true
}
