//! The serving side.

use std::cell::Cell;
use std::fs::File;
use std::future::Future;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use wasip2::io::streams::StreamError;

use super::message::{Body, Input, ReadError, Request, Response};
use crate::rt::{sleep, spawn, timeout};
use crate::tcp::{Listener, Stream};

/// Most connections at once; further ones wait in the listener's backlog.
const CONNECTIONS_MAX: usize = 1024;
/// Pause between two looks whether a connection has ended, while there are too many.
const FULL_PAUSE: Duration = Duration::from_millis(20);
/// How long a client may take for its next request.
const IDLE: Duration = Duration::from_secs(75);
/// Most that is read from a file at once, in bytes.
const FILE_BYTES_MAX: usize = 32 * 1024;

/// What answers requests.
pub(crate) type Handler = Rc<dyn Fn(Request) -> Pin<Box<dyn Future<Output = Response>>>>;

/// Makes a handler from an async function.
pub(crate) fn handler<F>(function: impl Fn(Request) -> F + 'static) -> Handler
where
    F: Future<Output = Response> + 'static,
{
    Rc::new(move |request| Box::pin(function(request)))
}

/// Serves a port. Returns only when it cannot.
pub(crate) async fn serve(port: u16, handler: Handler) -> String {
    let listener = match Listener::bind(port).await {
        Ok(listener) => listener,
        Err(code) => return format!("cannot listen on port {port}: {code}"),
    };
    println!("serving HTTP on port {port}");
    let connections = Rc::new(Cell::new(0_usize));
    loop {
        while connections.get() >= CONNECTIONS_MAX {
            sleep(FULL_PAUSE).await;
        }
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(code) => return format!("cannot accept on port {port}: {code}"),
        };
        connections.set(connections.get() + 1);
        let (handler, connections) = (Rc::clone(&handler), Rc::clone(&connections));
        spawn(async move {
            // A client that is gone is nobody's error.
            let _gone = converse(&stream, &handler).await;
            connections.set(connections.get().saturating_sub(1));
        });
    }
}

async fn converse(stream: &Stream, handler: &Handler) -> Result<(), StreamError> {
    let mut input = Input::default();
    loop {
        let request = match timeout(IDLE, next(stream, &mut input)).await {
            Some(Ok(request)) => request,
            Some(Err(ReadError::Bad(status, words))) => {
                write(stream, Response::text(status, words), false, false).await?;
                return stream.finish().await;
            }
            Some(Err(ReadError::Gone)) | None => return stream.finish().await,
        };
        let Asked { request, is_kept } = request;
        let is_head = request.method == "HEAD";
        let response = handler(request).await;
        let is_kept = is_kept && !response.headers.contains(&("connection", "close".to_owned()));
        write(stream, response, is_kept, is_head).await?;
        if !is_kept {
            return stream.finish().await;
        }
    }
}

struct Asked {
    request: Request,
    /// Whether the client wants to ask more.
    is_kept: bool,
}

async fn next(stream: &Stream, input: &mut Input) -> Result<Asked, ReadError> {
    let (first, headers) = input.head(stream).await?;
    let words: Vec<&str> = first.split(' ').collect();
    let [method, target, version] = words.as_slice() else {
        return Err(ReadError::Bad(400, "this is no request\n"));
    };
    if !version.starts_with("HTTP/1.") {
        return Err(ReadError::Bad(505, "only HTTP/1 is spoken\n"));
    }
    let is_kept = *version != "HTTP/1.0" && !headers.has("connection", "close");
    let (method, target) = ((*method).to_owned(), (*target).to_owned());
    if headers.has("expect", "100-continue") {
        stream.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
    }
    // No handler wants it, but the next request stands behind it.
    input.body(stream, &headers, false).await?;
    Ok(Asked { request: Request { method, target, headers, peer: stream.peer() }, is_kept })
}

async fn write(
    stream: &Stream,
    response: Response,
    is_kept: bool,
    is_head: bool,
) -> Result<(), StreamError> {
    let length = match &response.body {
        Body::Text(text) => u64::try_from(text.len()).unwrap_or(u64::MAX),
        Body::File(_, _, length) => *length,
    };
    let mut head = format!("HTTP/1.1 {} {}\r\n", response.status, reason(response.status));
    for (name, value) in &response.headers {
        if !matches!(*name, "connection" | "content-length") {
            // A value from the client must not begin another line.
            let value: String = value.chars().filter(|c| !c.is_control()).collect();
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    let connection = if is_kept { "keep-alive" } else { "close" };
    if response.status != 304 {
        head.push_str(&format!("content-length: {length}\r\n"));
    }
    head.push_str(&format!("connection: {connection}\r\n\r\n"));
    stream.write(head.as_bytes()).await?;
    match response.body {
        _ if is_head => Ok(()),
        Body::Text(text) => stream.write(text.as_bytes()).await,
        Body::File(path, first, length) => copy(stream, &path, first, length).await,
    }
}

async fn copy(stream: &Stream, path: &Path, first: u64, length: u64) -> Result<(), StreamError> {
    // Too short, or unreadable: the client sees a connection that ends too early.
    let Ok(mut file) = File::open(path) else { return Err(StreamError::Closed) };
    if file.seek(SeekFrom::Start(first)).is_err() {
        return Err(StreamError::Closed);
    }
    let mut rest = usize::try_from(length).unwrap_or(usize::MAX);
    let mut buffer = vec![0; FILE_BYTES_MAX];
    while rest > 0 {
        let wanted = rest.min(FILE_BYTES_MAX);
        let got = buffer.get_mut(..wanted).map(|room| file.read(room));
        let Some(Ok(got @ 1..)) = got else { return Err(StreamError::Closed) };
        stream.write(buffer.get(..got).unwrap_or_default()).await?;
        rest = rest.saturating_sub(got);
    }
    Ok(())
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        304 => "Not Modified",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        412 => "Precondition Failed",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        _ => "Other",
    }
}
