//! Which protocol the connection changes to.

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Response, StatusCode};

use super::Kind;
use crate::api::status::Status;
use crate::apiserver::error::ApiError;
use crate::streaming::channel::{V4, V5};

/// In `Upgrade`.
const SPDY: &str = "SPDY/3.1";
/// Where SPDY clients name protocols.
const STREAM_PROTOCOL: HeaderName = HeaderName::from_static("x-stream-protocol-version");
/// Port-forward over SPDY.
const FORWARD: &str = "portforward.k8s.io";
/// Port-forward over SPDY within a WebSocket.
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
/// RFC 6455, 1.3.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What is spoken from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    /// A command over WebSocket messages.
    Channel { is_v5: bool },
    /// A command over SPDY streams.
    SpdyCommand,
    /// Connections over SPDY streams.
    SpdyForward,
    /// The same, within a WebSocket.
    TunnelForward,
    /// One connection per port, over WebSocket messages.
    ChannelForward,
}

/// The agreement, and how to tell it.
#[derive(Debug)]
pub(super) struct Switch {
    pub(super) protocol: Protocol,
    /// `101 Switching Protocols`.
    pub(super) response: Response<Body>,
}

/// Chooses the first protocol in our order that the client offers.
pub(super) fn negotiate(headers: &HeaderMap, kind: Kind) -> Result<Switch, ApiError> {
    let is_upgrade = words(headers, &CONNECTION).any(|word| word.eq_ignore_ascii_case("upgrade"));
    let to = headers.get(UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let required = || Status::bad_request("Upgrade request required");
    if !is_upgrade {
        return Err(required().into());
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let protocol = if to.eq_ignore_ascii_case("websocket") {
        let (name, protocol) = choose(websocket(kind), headers, &SEC_WEBSOCKET_PROTOCOL)?;
        if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
            return Err(Status::bad_request("only version 13 of WebSocket is spoken here").into());
        }
        let key = headers.get(SEC_WEBSOCKET_KEY);
        let key = key.ok_or_else(|| Status::bad_request("Sec-WebSocket-Key is missing"))?;
        answer.insert(UPGRADE, HeaderValue::from_static("websocket"));
        answer.insert(SEC_WEBSOCKET_ACCEPT, accept(key.as_bytes())?);
        answer.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
        protocol
    } else if to.eq_ignore_ascii_case(SPDY) {
        let (name, protocol) = choose(spdy(kind), headers, &STREAM_PROTOCOL)?;
        answer.insert(UPGRADE, HeaderValue::from_static(SPDY));
        answer.insert(STREAM_PROTOCOL, HeaderValue::from_static(name));
        protocol
    } else {
        return Err(required().into());
    };
    Ok(Switch { protocol, response })
}

type Offer = &'static [(&'static str, Protocol)];

fn websocket(kind: Kind) -> Offer {
    match kind {
        Kind::Exec | Kind::Attach => {
            &[(V5, Protocol::Channel { is_v5: true }), (V4, Protocol::Channel { is_v5: false })]
        }
        Kind::PortForward => &[(TUNNEL, Protocol::TunnelForward), (V4, Protocol::ChannelForward)],
    }
}

/// Version 5 over SPDY is version 4: a SPDY stream can be ended without it.
fn spdy(kind: Kind) -> Offer {
    match kind {
        Kind::Exec | Kind::Attach => &[(V4, Protocol::SpdyCommand), (V5, Protocol::SpdyCommand)],
        Kind::PortForward => &[(FORWARD, Protocol::SpdyForward)],
    }
}

fn choose(
    ours: Offer,
    headers: &HeaderMap,
    field: &HeaderName,
) -> Result<(&'static str, Protocol), ApiError> {
    let chosen = ours.iter().find(|(name, _)| words(headers, field).any(|word| word == *name));
    chosen.copied().ok_or_else(|| {
        let theirs: Vec<_> = words(headers, field).collect();
        let ours: Vec<_> = ours.iter().map(|(name, _)| *name).collect();
        let text = format!(
            "unable to negotiate protocol: client supports {theirs:?}, server accepts {ours:?}"
        );
        Status::bad_request(text).into()
    })
}

/// The words of a field that may be repeated and has commas.
fn words<'a>(headers: &'a HeaderMap, field: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(field).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

/// `Sec-WebSocket-Accept`.
fn accept(key: &[u8]) -> Result<HeaderValue, ApiError> {
    // SHA-1 is what RFC 6455 says; it guards nothing here.
    let mut hash = ring::digest::Context::new(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(WEBSOCKET_GUID.as_bytes());
    let text = STANDARD.encode(hash.finish());
    HeaderValue::from_str(&text).map_err(|_| Status::bad_request("Sec-WebSocket-Key").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    const WEBSOCKET: [(&str, &str); 4] = [
        ("connection", "keep-alive, Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];

    fn websocket(protocol: &'static str, kind: Kind) -> Result<Switch, ApiError> {
        let mut pairs = WEBSOCKET.to_vec();
        pairs.push(("sec-websocket-protocol", protocol));
        negotiate(&headers(&pairs), kind)
    }

    #[test]
    fn kubectl_gets_the_protocols_it_asks_for() {
        let v5 = websocket(V5, Kind::Exec).unwrap();
        assert_eq!(v5.protocol, Protocol::Channel { is_v5: true });
        // The example of RFC 6455, 1.3.
        let accept = v5.response.headers().get("sec-websocket-accept").unwrap();
        assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(v5.response.headers().get("sec-websocket-protocol").unwrap(), V5);
        let both = websocket("v4.channel.k8s.io, v5.channel.k8s.io", Kind::Attach).unwrap();
        assert_eq!(both.protocol, Protocol::Channel { is_v5: true });
        let tunnel = websocket(TUNNEL, Kind::PortForward).unwrap();
        assert_eq!(tunnel.protocol, Protocol::TunnelForward);
        let spdy = headers(&[
            ("connection", "Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", V4),
            ("x-stream-protocol-version", "v3.channel.k8s.io"),
        ]);
        let spdy = negotiate(&spdy, Kind::Exec).unwrap();
        assert_eq!(spdy.protocol, Protocol::SpdyCommand);
        assert_eq!(spdy.response.headers().get(STREAM_PROTOCOL).unwrap(), V4);
    }

    #[test]
    fn other_requests_are_refused() {
        assert!(websocket("v1.channel.k8s.io", Kind::Exec).is_err());
        assert!(websocket(V5, Kind::PortForward).is_err());
        assert!(websocket(TUNNEL, Kind::Exec).is_err());
        assert!(negotiate(&headers(&WEBSOCKET), Kind::Exec).is_err(), "no protocol");
        assert!(negotiate(&headers(&[("upgrade", "websocket")]), Kind::Exec).is_err());
        let old = [WEBSOCKET[0], WEBSOCKET[1], WEBSOCKET[3], ("sec-websocket-protocol", V5)];
        assert!(negotiate(&headers(&old), Kind::Exec).is_err(), "no version");
    }
}
