//! Header blocks: name and value pairs, packed with zlib and a preset dictionary.

use std::sync::LazyLock;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_IGNORE_ADLER32,
};
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use super::SpdyError;
use super::decode::Headers;

/// Most pairs in a block.
const PAIRS_MAX: usize = 64;
/// Longest block when unpacked, in bytes.
const BLOCK_BYTES_MAX: usize = 64 * 1024;
/// How far back packed data may refer: the window of deflate, in bytes.
const WINDOW_BYTES: usize = 32 * 1024;
/// Bytes of a zlib head that names a dictionary.
const ZLIB_HEAD_BYTES: usize = 6;
/// In the second byte of a zlib head: a dictionary's checksum follows.
const HAS_DICTIONARY: u8 = 0x20;
/// Adler-32 of the dictionary.
const DICTIONARY_ADLER: u32 = 0xe3c6_a7c2;

/// The words of the dictionary that stand with their length before them.
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
/// The rest of the dictionary.
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

/// What both ends' windows hold before the first byte: section 2.6.10.1 of the SPDY/3 draft.
static DICTIONARY: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut bytes = Vec::new();
    for word in WORDS {
        bytes.put_u32(u32::try_from(word.len()).unwrap_or(0));
        bytes.put_slice(word.as_bytes());
    }
    bytes.put_slice(TAIL.as_bytes());
    bytes
});

/// Unpacks the header blocks of one direction of a connection.
pub(super) struct Unpacker {
    inflate: Box<DecompressorOxide>,
    /// The last bytes unpacked, as a ring; the dictionary at first.
    window: Box<[u8]>,
    at: usize,
    has_begun: bool,
}

impl std::fmt::Debug for Unpacker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unpacker").field("has_begun", &self.has_begun).finish_non_exhaustive()
    }
}

impl Unpacker {
    pub(super) fn new() -> Self {
        let window = vec![0; WINDOW_BYTES].into_boxed_slice();
        Self { inflate: Box::default(), window, at: 0, has_begun: false }
    }

    /// The pairs of the next block.
    pub(super) fn unpack(&mut self, packed: &[u8]) -> Result<Headers, SpdyError> {
        let packed = if self.has_begun { packed } else { self.begin(packed)? };
        let block = self.inflate(packed)?;
        parse(&mut Bytes::from(block)).ok_or(SpdyError::Headers)
    }

    /// Reads the head of the zlib stream, and puts the dictionary it names into the window.
    fn begin<'a>(&mut self, packed: &'a [u8]) -> Result<&'a [u8], SpdyError> {
        let (head, rest) = packed.split_at_checked(2).ok_or(SpdyError::Headers)?;
        let &[method, flags] = head else { return Err(SpdyError::Headers) };
        let is_zlib =
            method & 0x0f == 8 && (u16::from(method) * 256 + u16::from(flags)).is_multiple_of(31);
        if !is_zlib {
            return Err(SpdyError::Headers);
        }
        self.has_begun = true;
        if flags & HAS_DICTIONARY == 0 {
            return Ok(rest);
        }
        let (adler, rest) = rest.split_at_checked(ZLIB_HEAD_BYTES - 2).ok_or(SpdyError::Headers)?;
        if adler != DICTIONARY_ADLER.to_be_bytes() {
            return Err(SpdyError::Headers);
        }
        self.at = DICTIONARY.len();
        let start = self.window.get_mut(..self.at).ok_or(SpdyError::Headers)?;
        start.copy_from_slice(&DICTIONARY);
        Ok(rest)
    }

    fn inflate(&mut self, mut packed: &[u8]) -> Result<Vec<u8>, SpdyError> {
        let mut block = Vec::new();
        let flags = TINFL_FLAG_HAS_MORE_INPUT | TINFL_FLAG_IGNORE_ADLER32;
        loop {
            let (status, taken, made) =
                decompress(&mut self.inflate, packed, &mut self.window, self.at, flags);
            packed = packed.get(taken..).unwrap_or_default();
            let fresh = self.window.get(self.at..self.at + made).ok_or(SpdyError::Headers)?;
            if block.len() + fresh.len() > BLOCK_BYTES_MAX {
                return Err(SpdyError::Headers);
            }
            block.extend_from_slice(fresh);
            self.at = (self.at + made) % WINDOW_BYTES;
            match status {
                TINFLStatus::HasMoreOutput => {}
                TINFLStatus::NeedsMoreInput if packed.is_empty() => return Ok(block),
                _ => return Err(SpdyError::Headers),
            }
        }
    }
}

fn parse(block: &mut Bytes) -> Option<Headers> {
    let word = |block: &mut Bytes| {
        let bytes = usize::try_from(block.try_get_u32().ok()?).ok()?;
        (bytes <= block.len()).then(|| String::from_utf8_lossy(&block.split_to(bytes)).into_owned())
    };
    let count = usize::try_from(block.try_get_u32().ok()?).ok()?;
    if count > PAIRS_MAX {
        return None;
    }
    let mut headers = Headers::new();
    for _ in 0..count {
        let name = word(block)?.to_ascii_lowercase();
        headers.insert(name, word(block)?);
    }
    Some(headers)
}

/// Packs a block without pairs: all that is answered to a client. Not compressed: stored blocks
/// need no state but whether the head of the stream was sent. The empty one flushes a reader.
pub(super) fn pack_empty(is_first: bool) -> Bytes {
    let mut packed = BytesMut::new();
    if is_first {
        packed.put_slice(&[0x78, 0x01]);
    }
    packed.put_slice(&[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]);
    packed.put_slice(&[0, 0, 0, 0xff, 0xff]);
    packed.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut raw = Vec::new();
        raw.put_u32(u32::try_from(pairs.len()).unwrap());
        for word in pairs.iter().flat_map(|(name, value)| [name, value]) {
            raw.put_u32(u32::try_from(word.len()).unwrap());
            raw.put_slice(word.as_bytes());
        }
        raw
    }

    fn stored(raw: &[u8]) -> Vec<u8> {
        let length = u16::try_from(raw.len()).unwrap();
        let mut packed = vec![0];
        packed.extend_from_slice(&length.to_le_bytes());
        packed.extend_from_slice(&(!length).to_le_bytes());
        packed.extend_from_slice(raw);
        packed.extend_from_slice(&[0, 0, 0, 0xff, 0xff]);
        packed
    }

    fn adler32(bytes: &[u8]) -> u32 {
        let (a, b) = bytes.iter().fold((1_u32, 0_u32), |(a, b), byte| {
            let a = (a + u32::from(*byte)) % 65_521;
            (a, (a + b) % 65_521)
        });
        b << 16 | a
    }

    #[test]
    fn the_dictionary_is_the_one_of_the_draft() {
        assert_eq!(DICTIONARY.len(), 1423);
        assert_eq!(adler32(&DICTIONARY), DICTIONARY_ADLER);
    }

    #[test]
    fn blocks_follow_one_another_in_one_stream() {
        let mut unpacker = Unpacker::new();
        let mut first = vec![0x78, 0xbb];
        first.extend_from_slice(&DICTIONARY_ADLER.to_be_bytes());
        first.extend_from_slice(&stored(&block(&[("StreamType", "error")])));
        let headers = unpacker.unpack(&first).unwrap();
        assert_eq!(headers.get("streamtype").map(String::as_str), Some("error"));
        let second = stored(&block(&[("port", "80"), ("requestid", "0")]));
        assert_eq!(unpacker.unpack(&second).unwrap().len(), 2);
        for _ in 0..5000 {
            // Further than the window is long.
            assert_eq!(unpacker.unpack(&stored(&block(&[("port", "1")]))).unwrap().len(), 1);
        }
    }

    #[test]
    fn what_zlib_packs_with_the_dictionary_is_unpacked() {
        let hex = |text: &str| hex::decode(text).unwrap();
        let mut unpacker = Unpacker::new();
        let first = "78f9e3c6a7c202253a703a2b294a4dcc851625aca9a0808614cb45e01c6061606100a4398b20d198094ade8c0600000000ffff";
        let error = unpacker.unpack(&hex(first)).unwrap();
        let wanted = [("port", "8080"), ("requestid", "0"), ("streamtype", "error")];
        assert!(error.iter().map(|(name, value)| (name.as_str(), value.as_str())).eq(wanted));
        let second = "02c9606806954389c4e985164202c0b05440f606000000ffff";
        let data = unpacker.unpack(&hex(second)).unwrap();
        assert_eq!(data["streamtype"], "data");
        assert_eq!(data["host"], "GMT gzip,deflate");
    }

    #[test]
    fn what_is_packed_here_is_an_empty_block() {
        let mut unpacker = Unpacker::new();
        assert!(unpacker.unpack(&pack_empty(true)).unwrap().is_empty());
        assert!(unpacker.unpack(&pack_empty(false)).unwrap().is_empty());
    }

    #[test]
    fn malformed_blocks_are_refused() {
        let refused = |packed: &[u8]| Unpacker::new().unpack(packed).is_err();
        assert!(refused(b""));
        assert!(refused(&[0x79, 0x01]), "no zlib");
        assert!(refused(&[0x78, 0xbb, 0, 0, 0, 0]), "another dictionary");
        let with_head = |raw: &[u8]| [&[0x78, 0x01][..], &stored(raw)].concat();
        assert!(refused(&with_head(&[0, 0, 0, 1])), "less than it says");
        assert!(refused(&with_head(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff])), "a huge name");
        assert!(refused(&with_head(&[0xff, 0xff, 0xff, 0xff])), "countless pairs");
    }
}
