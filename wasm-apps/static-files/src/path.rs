//! From the path of a URL to the path of a file.

use std::path::{Path, PathBuf};

/// Longest path that is looked at, in bytes.
const PATH_BYTES_MAX: usize = 4096;

/// Why a URL's path names no file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PathError {
    /// It leads out of the root. Refuse.
    Escapes,
    /// It is not absolute, too long, or not text. Refuse.
    Malformed,
    /// No file can have this name. It is not found.
    Impossible,
}

/// The file that `raw` names below `root`.
pub(crate) fn inside(root: &Path, raw: &str) -> Result<PathBuf, PathError> {
    if !raw.starts_with('/') || raw.len() > PATH_BYTES_MAX {
        return Err(PathError::Malformed);
    }
    let mut names: Vec<String> = Vec::new();
    // Split first, decode then: an encoded slash must not make another segment.
    for segment in raw.split('/') {
        let name = String::from_utf8(percent_decoded(segment)).map_err(|_| PathError::Malformed)?;
        match name.as_str() {
            "" | "." => {}
            ".." => drop(names.pop().ok_or(PathError::Escapes)?),
            _ if name.contains(['/', '\\', '\0']) => return Err(PathError::Impossible),
            _ => names.push(name),
        }
    }
    Ok(names.iter().fold(root.to_owned(), |path, name| path.join(name)))
}

/// `%41` becomes `A`; what is no escape stays as it is.
pub fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escape =
            tail.split_at_checked(2).filter(|_| *first == b'%').and_then(|(digits, after)| {
                let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
                let digits = std::str::from_utf8(digits).ok().filter(|_| is_hex)?;
                Some((u8::from_str_radix(digits, 16).ok()?, after))
            });
        let (byte, after) = escape.unwrap_or((*first, tail));
        bytes.push(byte);
        rest = after;
    }
    bytes
}
