//! Requests and responses, and how heads are read.

use std::net::SocketAddr;
use std::path::PathBuf;

use wasip2::io::streams::StreamError;

use crate::tcp::Stream;

/// Longest head of a message, in bytes.
pub(crate) const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Longest body that is kept, in bytes.
pub(crate) const BODY_BYTES_MAX: usize = 1024 * 1024;
/// Most that is read at once, in bytes.
const READ_BYTES_MAX: usize = 16 * 1024;

/// A request.
pub(crate) struct Request {
    /// For example `GET`.
    pub(crate) method: String,
    /// Path and query as they were sent.
    pub(crate) target: String,
    /// Lower-case names with values.
    pub(crate) headers: Headers,
    /// Who sent it.
    pub(crate) peer: Option<SocketAddr>,
}

impl Request {
    /// Path without the query.
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Value of a parameter of the query, decoded.
    pub(crate) fn parameter(&self, name: &str) -> Option<String> {
        let (_, query) = self.target.split_once('?')?;
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let (_, value) = pairs.into_iter().find(|(key, _)| *key == name)?;
        let bytes = static_files::percent_decoded(&value.replace('+', " "));
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// Headers in the order of the message.
#[derive(Default)]
pub(crate) struct Headers(pub(crate) Vec<(String, String)>);

impl Headers {
    /// First value of a header, by its lower-case name.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether a list like `connection` has a word.
    pub(crate) fn has(&self, name: &str, word: &str) -> bool {
        let words = self.get(name).into_iter().flat_map(|list| list.split(','));
        words.into_iter().any(|found| found.trim().eq_ignore_ascii_case(word))
    }
}

/// What follows the head of a response.
pub(crate) enum Body {
    /// A text.
    Text(String),
    /// Bytes of a file: path, first byte, number of bytes.
    File(PathBuf, u64, u64),
}

/// A response.
pub(crate) struct Response {
    /// Status code.
    pub(crate) status: u16,
    /// Without `content-length` and `connection`, which the server adds.
    pub(crate) headers: Vec<(&'static str, String)>,
    /// What follows.
    pub(crate) body: Body,
}

impl Response {
    /// A text.
    pub(crate) fn text(status: u16, text: impl Into<String>) -> Self {
        let headers = vec![("content-type", "text/plain; charset=utf-8".to_owned())];
        Self { status, headers, body: Body::Text(text.into()) }
    }

    /// The same with one header more.
    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Why a message cannot be read.
pub(crate) enum ReadError {
    /// The other side is gone, or sends no more. Close.
    Gone,
    /// It breaks the rules or a limit: status code and words for it. Answer, then close.
    Bad(u16, &'static str),
}

impl From<StreamError> for ReadError {
    fn from(_: StreamError) -> Self {
        Self::Gone
    }
}

/// Bytes of a connection that were read and not used yet.
#[derive(Default)]
pub(crate) struct Input {
    bytes: Vec<u8>,
}

impl Input {
    /// First line and headers of the next message.
    pub(crate) async fn head(&mut self, stream: &Stream) -> Result<(String, Headers), ReadError> {
        let text = loop {
            if let Some(end) = find(&self.bytes, b"\r\n\r\n") {
                let rest = self.bytes.split_off(end + 4);
                let head = std::mem::replace(&mut self.bytes, rest);
                break String::from_utf8(head).map_err(|_| ReadError::Bad(400, "not text\n"))?;
            }
            if self.bytes.len() > HEAD_BYTES_MAX {
                return Err(ReadError::Bad(431, "the head is too long\n"));
            }
            self.more(stream).await?;
        };
        let mut lines = text.split("\r\n");
        let first = lines.next().unwrap_or_default().to_owned();
        let mut headers = Headers::default();
        for line in lines.filter(|line| !line.is_empty()) {
            let (name, value) =
                line.split_once(':').ok_or(ReadError::Bad(400, "a header has no colon\n"))?;
            headers.0.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok((first, headers))
    }

    /// The body that belongs to these headers. `is_to_end`: without a length it ends with the
    /// connection, as that of a response does.
    pub(crate) async fn body(
        &mut self,
        stream: &Stream,
        headers: &Headers,
        is_to_end: bool,
    ) -> Result<Vec<u8>, ReadError> {
        if headers.has("transfer-encoding", "chunked") {
            return self.chunks(stream).await;
        }
        match headers.get("content-length") {
            Some(length) => {
                let length = length.parse().map_err(|_| ReadError::Bad(400, "no length\n"))?;
                self.exactly(stream, length).await
            }
            None if is_to_end => loop {
                match self.more(stream).await {
                    Ok(()) if self.bytes.len() > BODY_BYTES_MAX => return Err(TOO_LONG),
                    Ok(()) => {}
                    Err(_) => return Ok(std::mem::take(&mut self.bytes)),
                }
            },
            None => Ok(Vec::new()),
        }
    }

    async fn chunks(&mut self, stream: &Stream) -> Result<Vec<u8>, ReadError> {
        let mut body = Vec::new();
        loop {
            let line = self.line(stream).await?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = usize::from_str_radix(size, 16)
                .map_err(|_| ReadError::Bad(400, "a chunk has no size\n"))?;
            if size == 0 {
                // Trailers are read over.
                while !self.line(stream).await?.is_empty() {}
                return Ok(body);
            }
            if body.len().saturating_add(size) > BODY_BYTES_MAX {
                return Err(TOO_LONG);
            }
            body.extend(self.exactly(stream, size).await?);
            self.line(stream).await?;
        }
    }

    async fn line(&mut self, stream: &Stream) -> Result<String, ReadError> {
        loop {
            if let Some(end) = find(&self.bytes, b"\r\n") {
                let rest = self.bytes.split_off(end + 2);
                let mut line = std::mem::replace(&mut self.bytes, rest);
                line.truncate(end);
                return String::from_utf8(line).map_err(|_| ReadError::Bad(400, "not text\n"));
            }
            if self.bytes.len() > HEAD_BYTES_MAX {
                return Err(ReadError::Bad(400, "a line is too long\n"));
            }
            self.more(stream).await?;
        }
    }

    async fn exactly(&mut self, stream: &Stream, length: usize) -> Result<Vec<u8>, ReadError> {
        if length > BODY_BYTES_MAX {
            return Err(TOO_LONG);
        }
        while self.bytes.len() < length {
            self.more(stream).await?;
        }
        let rest = self.bytes.split_off(length);
        Ok(std::mem::replace(&mut self.bytes, rest))
    }

    async fn more(&mut self, stream: &Stream) -> Result<(), ReadError> {
        let bytes = stream.read(READ_BYTES_MAX).await?;
        if bytes.is_empty() {
            return Err(ReadError::Gone);
        }
        self.bytes.extend(bytes);
        Ok(())
    }
}

const TOO_LONG: ReadError = ReadError::Bad(413, "the body is too long\n");

fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}
