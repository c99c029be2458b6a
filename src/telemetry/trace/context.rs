//! W3C trace context: `traceparent`, version 00.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// Which trace a request belongs to.
pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What other tracing systems add to it; passed on as it is.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Bytes of a `traceparent` of version 00.
const BYTES: usize = 55;
const SAMPLED: u8 = 1;
/// Flags that are known and so passed on: sampled, and the random id of level 2.
const FLAGS: u8 = 3;
const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// A span's place in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// Not all zeros.
    pub trace_id: [u8; 16],
    /// Not all zeros.
    pub span_id: [u8; 8],
    /// Bit 0: the trace is sampled.
    pub flags: u8,
}

impl TraceContext {
    /// Reads a `traceparent`. Later versions are read as far as they are like this one.
    #[must_use]
    pub fn parse(text: &[u8]) -> Option<Self> {
        let (head, rest) = text.split_at_checked(BYTES)?;
        let [version, trace_id, span_id, flags] = parts(head)?;
        let version = byte(version)?;
        let is_known = version == 0 && rest.is_empty();
        let is_later = version != 0 && version != 0xff && matches!(rest, [] | [b'-', ..]);
        let context = Self {
            trace_id: bytes(trace_id)?,
            span_id: bytes(span_id)?,
            flags: byte(flags)? & FLAGS,
        };
        let has_ids = context.trace_id != [0; 16] && context.span_id != [0; 8];
        (has_ids && (is_known || is_later)).then_some(context)
    }

    /// Whether the trace is to be exported.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    pub(super) fn set_sampled(&mut self, is_sampled: bool) {
        self.flags = (self.flags & !SAMPLED) | u8::from(is_sampled);
    }

    /// The value of `traceparent`.
    #[must_use]
    pub fn header(&self) -> HeaderValue {
        let mut text = Vec::with_capacity(BYTES);
        text.extend_from_slice(b"00-");
        push_hex(&mut text, &self.trace_id);
        text.push(b'-');
        push_hex(&mut text, &self.span_id);
        text.push(b'-');
        push_hex(&mut text, &[self.flags]);
        // Digits and dashes are a valid field.
        HeaderValue::from_maybe_shared(bytes::Bytes::from(text))
            .unwrap_or(HeaderValue::from_static(""))
    }
}

/// What a request says of its trace.
pub(super) enum Arrived {
    Nothing,
    Valid(TraceContext),
    Invalid,
}

/// Of a request's header; two contexts are none.
pub(super) fn arrived(headers: &HeaderMap) -> Arrived {
    let mut values = headers.get_all(TRACEPARENT).iter();
    match (values.next(), values.next()) {
        (None, _) => Arrived::Nothing,
        (Some(value), None) => match TraceContext::parse(value.as_bytes()) {
            Some(context) => Arrived::Valid(context),
            None => Arrived::Invalid,
        },
        (Some(_), Some(_)) => Arrived::Invalid,
    }
}

/// The four fields between the dashes.
fn parts(head: &[u8]) -> Option<[&[u8]; 4]> {
    let mut fields = head.split(|byte| *byte == b'-');
    let parts = [fields.next()?, fields.next()?, fields.next()?, fields.next()?];
    fields.next().is_none().then_some(parts)
}

fn byte(text: &[u8]) -> Option<u8> {
    bytes::<1>(text).map(|[byte]| byte)
}

/// Bytes in small hexadecimal digits; large ones are not valid.
fn bytes<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

fn push_hex(text: &mut Vec<u8>, bytes: &[u8]) {
    let digit = |at: u8| DIGITS.get(usize::from(at)).copied().unwrap_or(b'0');
    for byte in bytes {
        text.extend([digit(byte >> 4), digit(byte & 15)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_context_is_written_as_it_was_read() {
        let context = TraceContext::parse(GOOD.as_bytes()).unwrap();
        assert!(context.is_sampled());
        assert_eq!(context.header(), GOOD);
        let unsampled = TraceContext::parse(GOOD.replace("-01", "-00").as_bytes()).unwrap();
        assert!(!unsampled.is_sampled());
    }

    #[test]
    fn flags_that_nobody_knows_are_not_passed_on() {
        let context = TraceContext::parse(GOOD.replace("-01", "-ff").as_bytes()).unwrap();
        assert_eq!(context.flags, 3);
    }

    #[test]
    fn a_later_version_is_read_as_far_as_it_is_known() {
        for later in [GOOD.replacen("00", "01", 1), format!("cc{}-what-ever", &GOOD[2..])] {
            assert!(TraceContext::parse(later.as_bytes()).is_some(), "{later}");
        }
        let stuck = format!("cc{}x", &GOOD[2..]);
        assert!(TraceContext::parse(stuck.as_bytes()).is_none());
    }

    #[test]
    fn what_the_specification_calls_invalid_is() {
        for bad in [
            String::new(),
            GOOD[..54].to_owned(),
            format!("{GOOD}-"),
            format!("{GOOD}-00"),
            GOOD.to_uppercase(),
            GOOD.replacen("00", "ff", 1),
            GOOD.replacen("00", "0x", 1),
            GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32)),
            GOOD.replace("b7ad6b7169203331", &"0".repeat(16)),
            GOOD.replace("b7ad", "b7-d"),
            GOOD.replace('-', "_"),
            GOOD.replace("-01", "-0g"),
        ] {
            assert!(TraceContext::parse(bad.as_bytes()).is_none(), "{bad}");
        }
    }

    #[test]
    fn two_contexts_are_none() {
        let mut headers = HeaderMap::new();
        assert!(matches!(arrived(&headers), Arrived::Nothing));
        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert!(matches!(arrived(&headers), Arrived::Valid(_)));
        headers.append(TRACEPARENT, HeaderValue::from_static(GOOD));
        assert!(matches!(arrived(&headers), Arrived::Invalid));
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_read_is_written_and_read_again(text in "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}") {
            if let Some(context) = TraceContext::parse(text.as_bytes()) {
                let again = TraceContext::parse(context.header().as_bytes());
                proptest::prop_assert_eq!(again, Some(context));
            }
        }

        #[test]
        fn any_bytes_are_judged_without_harm(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80)) {
            let _ = TraceContext::parse(&bytes);
        }
    }
}
