//! What a web server answers for the files of a folder: paths, content types, ETags, ranges.
//!
//! Data in: the words of a request. Data out: status, headers, and which bytes of which file. Who
//! speaks HTTP is the caller's business, so that servers on different interfaces answer alike.
//!
//! # Invariants
//!
//! No answer names a file outside the root, whatever the request says (links inside are followed).

mod listing;
mod path;
mod range;

use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

pub use crate::path::percent_decoded;
use crate::path::{PathError, inside};
use crate::range::{Part, part};

/// File that stands for its folder.
const INDEX: &str = "index.html";
const HTML: &str = "text/html; charset=utf-8";

/// The words of a request that matter here.
#[derive(Debug, Default, Clone, Copy)]
pub struct Question<'a> {
    /// For example `GET`.
    pub method: &'a str,
    /// Path and query as they were sent.
    pub target: &'a str,
    /// Header `range`.
    pub range: Option<&'a str>,
    /// Header `if-range`.
    pub if_range: Option<&'a str>,
    /// Header `if-none-match`.
    pub if_none_match: Option<&'a str>,
}

/// What to answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Lower-case names with values. `content-length` is among them where there is a body.
    pub headers: Vec<(&'static str, String)>,
    /// What follows.
    pub body: Body,
}

/// Body of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Body {
    /// None, or a HEAD.
    Empty,
    /// A text made here.
    Text(String),
    /// `length` bytes of a file from `first` on.
    File {
        /// Where it lies.
        path: PathBuf,
        /// First byte.
        first: u64,
        /// Number of bytes.
        length: u64,
    },
}

/// Answers a request for a file below `root`. `greeting` is the page of a folder that is empty or
/// does not exist; without it that is an empty list.
pub fn answer(root: &Path, question: &Question<'_>, greeting: Option<&str>) -> Answer {
    let mut answer = match question.method {
        "GET" | "HEAD" => found(root, question, greeting),
        _ => with(message(405, "only GET and HEAD are served\n"), "allow", "GET, HEAD".to_owned()),
    };
    if question.method == "HEAD" {
        answer.body = Body::Empty;
    }
    answer
}

fn found(root: &Path, question: &Question<'_>, greeting: Option<&str>) -> Answer {
    let raw = question.target.split(['?', '#']).next().unwrap_or_default();
    let path = match inside(root, raw) {
        Ok(path) => path,
        Err(PathError::Escapes | PathError::Malformed) => {
            return message(400, "this is no path of a file\n");
        }
        Err(PathError::Impossible) => return message(404, "not found\n"),
    };
    let is_root = path == root;
    match fs::metadata(&path) {
        Ok(metadata) if metadata.is_dir() => {
            folder(&path, raw, question, greeting.filter(|_| is_root))
        }
        // `/file/` is not `/file`.
        Ok(_) if raw.ends_with('/') => message(404, "not found\n"),
        Ok(metadata) => file(path, &metadata, question),
        Err(_) => match greeting.filter(|_| is_root) {
            Some(page) => text(200, HTML, page.to_owned()),
            None => message(404, "not found\n"),
        },
    }
}

fn folder(path: &Path, raw: &str, question: &Question<'_>, greeting: Option<&str>) -> Answer {
    if !raw.ends_with('/') {
        return with(message(301, "it is a folder\n"), "location", format!("{raw}/"));
    }
    let index = path.join(INDEX);
    if let Ok(metadata) = fs::metadata(&index)
        && metadata.is_file()
    {
        return file(index, &metadata, question);
    }
    match (listing::names(path), greeting) {
        (Ok(names), Some(page)) if names.is_empty() => text(200, HTML, page.to_owned()),
        (Ok(names), _) => text(200, HTML, listing::page(raw, &names)),
        (Err(_), _) => message(403, "this folder cannot be read\n"),
    }
}

fn file(path: PathBuf, metadata: &Metadata, question: &Question<'_>) -> Answer {
    let length = metadata.len();
    let etag = etag(metadata);
    let mut headers = vec![("etag", etag.clone()), ("accept-ranges", "bytes".to_owned())];
    if question.if_none_match.is_some_and(|tags| matches(tags, &etag)) {
        return Answer { status: 304, headers, body: Body::Empty };
    }
    // The range is of the file that the client knows, or it wants the whole of the other one.
    let range = question.range.filter(|_| question.if_range.is_none_or(|known| known == etag));
    let (status, first, length) = match part(range, length) {
        Part::Whole => (200, 0, length),
        Part::Bytes { first, last } => {
            headers.push(("content-range", format!("bytes {first}-{last}/{length}")));
            (206, first, last - first + 1)
        }
        Part::Outside => {
            let refusal = message(416, "the file has no such bytes\n");
            return with(refusal, "content-range", format!("bytes */{length}"));
        }
    };
    headers.push(("content-type", content_type(&path).to_owned()));
    headers.push(("content-length", length.to_string()));
    Answer { status, headers, body: Body::File { path, first, length } }
}

/// Length and time of the last change; a file that is swapped for another has another time.
fn etag(metadata: &Metadata) -> String {
    let changed = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    format!("\"{:x}-{:x}\"", metadata.len(), changed.unwrap_or_default().as_nanos())
}

/// Whether one of the tags of `if-none-match` is this one. Weak and strong compare alike there.
fn matches(tags: &str, etag: &str) -> bool {
    tags.split(',').map(str::trim).any(|tag| tag == "*" || tag.trim_start_matches("W/") == etag)
}

fn message(status: u16, words: &str) -> Answer {
    text(status, "text/plain; charset=utf-8", words.to_owned())
}

fn text(status: u16, content_type: &str, text: String) -> Answer {
    let headers =
        vec![("content-type", content_type.to_owned()), ("content-length", text.len().to_string())];
    Answer { status, headers, body: Body::Text(text) }
}

fn with(mut answer: Answer, name: &'static str, value: String) -> Answer {
    answer.headers.push((name, value));
    answer
}

fn content_type(path: &Path) -> &'static str {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    match extension.to_ascii_lowercase().as_str() {
        "html" | "htm" => HTML,
        "css" => "text/css; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "txt" | "conf" | "log" | "md" => "text/plain; charset=utf-8",
        "csv" => "text/csv; charset=utf-8",
        "json" | "map" => "application/json",
        "xml" => "application/xml",
        "yaml" | "yml" => "application/yaml",
        "wasm" => "application/wasm",
        "pdf" => "application/pdf",
        "zip" => "application/zip",
        "gz" | "tgz" => "application/gzip",
        "tar" => "application/x-tar",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        "gif" => "image/gif",
        "webp" => "image/webp",
        "ico" => "image/vnd.microsoft.icon",
        "woff2" => "font/woff2",
        "woff" => "font/woff",
        "mp4" => "video/mp4",
        "mp3" => "audio/mpeg",
        _ => "application/octet-stream",
    }
}

#[cfg(test)]
#[path = "lib_test.rs"]
mod tests;
