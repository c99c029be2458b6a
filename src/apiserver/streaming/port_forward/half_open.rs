//! The streams of a connection, until both are there.

use std::collections::BTreeMap;

use super::Pair;
use crate::streaming::spdy::Headers;

/// Streams whose partner has not come yet.
const HALF_OPEN_MAX: usize = 32;

/// Streams that wait for their partner: by request, the numbers of `data` and `error`.
#[derive(Debug, Default)]
pub(super) struct HalfOpen(BTreeMap<String, (Option<u32>, Option<u32>)>);

impl HalfOpen {
    /// Adds a stream; the pair when it is complete, or `Err` for what is no stream of a pair.
    pub(super) fn add(
        &mut self,
        stream: u32,
        headers: &Headers,
    ) -> Result<Option<(Pair, u16)>, ()> {
        let text = |name: &str| headers.get(name).map_or("", String::as_str);
        let port = text("port").parse::<u16>().ok().filter(|port| *port > 0).ok_or(())?;
        // Clients before requestID open the error stream right before the data stream.
        let request = match text("requestid") {
            "" => format!("port {port}"),
            id => id.to_owned(),
        };
        if !self.0.contains_key(&request) && self.0.len() >= HALF_OPEN_MAX {
            return Err(());
        }
        let known = self.0.entry(request.clone()).or_default();
        let place = match text("streamtype") {
            "data" => &mut known.0,
            "error" => &mut known.1,
            _ => return Err(()),
        };
        if place.replace(stream).is_some() {
            return Err(());
        }
        let (Some(data), Some(error)) = *known else { return Ok(None) };
        self.0.remove(&request);
        Ok(Some((Pair { data, error }, port)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(kind: &str, port: &str, request: &str) -> Headers {
        let pairs = [("streamtype", kind), ("port", port), ("requestid", request)];
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
    }

    #[test]
    fn streams_of_one_request_are_a_pair() {
        let mut half = HalfOpen::default();
        assert!(half.add(1, &headers("error", "80", "0")).unwrap().is_none());
        assert!(half.add(3, &headers("error", "80", "1")).unwrap().is_none());
        let (pair, port) = half.add(5, &headers("data", "80", "0")).unwrap().unwrap();
        assert_eq!((pair.data, pair.error, port), (5, 1, 80));
        assert!(half.add(7, &headers("error", "80", "1")).is_err(), "a second one");
    }

    #[test]
    fn what_is_no_stream_of_a_pair_is_refused() {
        let mut half = HalfOpen::default();
        assert!(half.add(1, &headers("stdin", "80", "0")).is_err());
        assert!(half.add(1, &headers("data", "0", "0")).is_err());
        assert!(half.add(1, &headers("data", "70000", "0")).is_err());
        for request in 0..u32::try_from(HALF_OPEN_MAX).unwrap() * 2 {
            let _ = half.add(request + 1, &headers("data", "80", &format!("r{request}")));
        }
        assert_eq!(half.0.len(), HALF_OPEN_MAX);
    }
}
