//! Heartbeats on a stream: each line names the node whose Lease is renewed and numbers the heartbeat, and
//! comes back when that counts.

use std::fmt::Write as _;

use bytes::Bytes;

/// Media type of such a body, both ways; the number is the protocol's version.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.edgeorc.renewals.v1";
/// Longest line: a name as of any object, a space, and a number.
const LINE_BYTES_MAX: usize = 253 + 1 + 20;

/// One heartbeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Renewal {
    pub(crate) node: String,
    /// Which one it is of those on its node's stream.
    pub(crate) number: u64,
}

/// What came is no heartbeat.
#[derive(Debug, thiserror::Error)]
#[error(
    "a heartbeat is a line with the name of a node and a number, in at most {LINE_BYTES_MAX} bytes"
)]
pub(crate) struct Malformed;

/// Reads heartbeats out of a body's chunks.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    begun: Vec<u8>,
}

impl Reader {
    /// Those that end in `chunk`.
    ///
    /// # Errors
    ///
    /// [`Malformed`]; the body is not to be read any further.
    pub(crate) fn read(&mut self, chunk: &[u8]) -> Result<Vec<Renewal>, Malformed> {
        let mut read = Vec::new();
        for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
            let (text, is_whole) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            if self.begun.len() + text.len() > LINE_BYTES_MAX {
                return Err(Malformed);
            }
            self.begun.extend_from_slice(text);
            if is_whole {
                read.push(parse(&self.begun).ok_or(Malformed)?);
                self.begun.clear();
            }
        }
        Ok(read)
    }
}

fn parse(line: &[u8]) -> Option<Renewal> {
    let (node, number) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    Some(Renewal { node: node.to_owned(), number: number.parse().ok()? })
}

/// The lines of these heartbeats.
pub(crate) fn lines(renewals: &[Renewal]) -> Bytes {
    let mut text = String::new();
    for one in renewals {
        // Writing to a String does not fail.
        let _ = writeln!(text, "{} {}", one.node, one.number);
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn renewal(node: &str, number: u64) -> Renewal {
        Renewal { node: node.to_owned(), number }
    }

    #[test]
    fn heartbeats_come_out_as_they_went_in_however_they_are_cut() {
        let sent = [renewal("a", 0), renewal("pi-1", u64::MAX), renewal("b", 7)];
        let bytes = lines(&sent);
        for cut in 0..=bytes.len() {
            let (first, rest) = bytes.split_at(cut);
            let mut reader = Reader::default();
            let mut read = reader.read(first).unwrap();
            read.extend(reader.read(rest).unwrap());
            assert_eq!(read, sent, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_heartbeat_is_refused_before_it_is_whole() {
        let longest = renewal(&"n".repeat(253), u64::MAX);
        let bytes = lines(std::slice::from_ref(&longest));
        assert_eq!(Reader::default().read(&bytes).unwrap(), [longest]);
        assert!(Reader::default().read(&[b'n'; LINE_BYTES_MAX + 1]).is_err());
        for wrong in ["\n", "a\n", "a b\n", "a -1\n", "a 1 \n", "a 18446744073709551616\n"] {
            assert!(Reader::default().read(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(Reader::default().read(b"\xff 1\n").is_err());
    }
}
