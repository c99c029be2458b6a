//! The streams of a connection, until both are there.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::Pair;
use crate::streaming::spdy::Headers;

/// Streams whose partner has not come yet.
const HALF_OPEN_MAX: usize = 32;
/// How long one waits for it, as kubelet has it.
const PARTNER_MAX: Duration = Duration::from_secs(30);

/// Streams that wait for their partner, by request.
#[derive(Debug, Default)]
pub(super) struct HalfOpen(BTreeMap<String, Half>);

/// The numbers of the streams of a request that have come.
#[derive(Debug)]
struct Half {
    data: Option<u32>,
    error: Option<u32>,
    since: Instant,
}

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
        self.0.retain(|_, half| half.since.elapsed() < PARTNER_MAX);
        let kind = text("streamtype");
        let is_known = self.0.contains_key(&request);
        if !matches!(kind, "data" | "error") || (!is_known && self.0.len() >= HALF_OPEN_MAX) {
            return Err(());
        }
        let none = Half { data: None, error: None, since: Instant::now() };
        let half = self.0.entry(request.clone()).or_insert(none);
        let place = if kind == "data" { &mut half.data } else { &mut half.error };
        if place.is_some() {
            return Err(());
        }
        *place = Some(stream);
        let (Some(data), Some(error)) = (half.data, half.error) else { return Ok(None) };
        self.0.remove(&request);
        Ok(Some((Pair { data, error }, port)))
    }

    /// The client has given a stream up.
    pub(super) fn reset(&mut self, stream: u32) {
        self.0.retain(|_, half| half.data != Some(stream) && half.error != Some(stream));
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

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_partner_does_not_come_is_forgotten() {
        let mut half = HalfOpen::default();
        for request in 0..u32::try_from(HALF_OPEN_MAX).unwrap() {
            half.add(request, &headers("error", "80", &format!("r{request}"))).unwrap();
        }
        assert!(half.add(99, &headers("error", "80", "new")).is_err());
        half.reset(5);
        assert!(half.add(99, &headers("error", "80", "new")).is_ok());
        assert!(half.add(100, &headers("error", "80", "newer")).is_err());
        tokio::time::advance(PARTNER_MAX).await;
        assert!(half.add(100, &headers("error", "80", "newer")).is_ok());
        assert_eq!(half.0.len(), 1);
    }
}
