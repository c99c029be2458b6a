//! The header of a request and a response on their way through.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Version};

use super::refusal::Refusal;
use crate::net::Body;
use crate::net::http::to_origin_form;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Fields that mean one connection, not the message (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
];

/// Host and port that a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target<'a> {
    pub(super) host: &'a str,
    pub(super) port: Option<u16>,
}

/// The host a request is for, if all that it says of it is the same.
pub(super) fn target<B>(request: &Request<B>) -> Result<Target<'_>, Refusal> {
    let mut fields = request.headers().get_all(header::HOST).iter();
    let field = match (fields.next(), fields.next()) {
        (Some(_), Some(_)) => return Err(Refusal::Host("the request names several hosts")),
        (field, _) => field.map(HeaderValue::as_bytes),
    };
    let authority = request.uri().authority().map(|authority| authority.as_str());
    let named = match (authority, field) {
        (None, None) => return Err(Refusal::Host("the request names no host")),
        (Some(authority), Some(field)) if !field.eq_ignore_ascii_case(authority.as_bytes()) => {
            return Err(Refusal::Host("the request names two hosts"));
        }
        (Some(authority), _) => authority,
        (None, Some(field)) => std::str::from_utf8(field).unwrap_or_default(),
    };
    split(named).ok_or(Refusal::Host("the request names no host"))
}

/// `host`, `host:port`, `[v6]` or `[v6]:port`; nobody's name and password before it.
fn split(named: &str) -> Option<Target<'_>> {
    let (host, port) = match named.strip_prefix('[') {
        Some(rest) => {
            let (ip, rest) = rest.split_once(']')?;
            (ip, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => match named.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (named, None),
        },
    };
    let is_name = |byte: u8| byte.is_ascii_graphic() && !b"@/?#\\[]".contains(&byte);
    let port = match port {
        None | Some("") => None,
        Some(port) => Some(port.parse().ok()?),
    };
    (!host.is_empty() && host.bytes().all(is_name)).then_some(Target { host, port })
}

/// Turns the client's request into the one that the pod gets.
pub(super) fn prepare(
    request: &mut Request<Body>,
    from: Option<&HeaderValue>,
    scheme: &'static str,
) {
    // Sets Host from the authority of an HTTP/2 request.
    to_origin_form(request);
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    remove_hop_by_hop(headers);
    if let Some(from) = from {
        let chain = match headers.get(X_FORWARDED_FOR).map(HeaderValue::as_bytes) {
            None => Some(from.clone()),
            Some(before) => {
                HeaderValue::from_bytes(&[before, b", ", from.as_bytes()].concat()).ok()
            }
        };
        if let Some(chain) = chain {
            headers.insert(X_FORWARDED_FOR, chain);
        }
    }
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    if let Some(host) = headers.get(header::HOST).cloned() {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

pub(super) fn remove_hop_by_hop(headers: &mut HeaderMap) {
    // Most messages have none: one look at the few names there are is cheaper than a search for each.
    if !headers.keys().any(|name| HOP_BY_HOP.contains(name)) {
        return;
    }
    let named: Vec<HeaderValue> = headers.get_all(header::CONNECTION).iter().cloned().collect();
    for field in &named {
        // The field names further fields that mean this connection only.
        for name in field.to_str().unwrap_or_default().split(',').map(str::trim) {
            // Not those by which the ingress tells who asks, and for what.
            let is_kept = ["host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]
                .iter()
                .any(|kept| kept.eq_ignore_ascii_case(name));
            if !is_kept {
                headers.remove(name);
            }
        }
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// Whether a comma-separated field holds `word`.
pub(super) fn has_word(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    headers.get_all(name).iter().any(|value| {
        let words = value.to_str().unwrap_or_default().split(',');
        words.map(str::trim).any(|one| one.eq_ignore_ascii_case(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(uri: &str, hosts: &[&str]) -> Result<(String, Option<u16>), ()> {
        let mut request = Request::get(uri);
        for host in hosts {
            request = request.header(header::HOST, *host);
        }
        let request = request.body(()).unwrap();
        let found = target(&request).map(|target| (target.host.to_owned(), target.port));
        found.map_err(|_| ())
    }

    #[test]
    fn a_request_names_one_host() {
        let is = |host: &str, port| Ok((host.to_owned(), port));
        assert_eq!(of("/", &["a.com"]), is("a.com", None));
        assert_eq!(of("/", &["a.com:81"]), is("a.com", Some(81)));
        assert_eq!(of("/", &["[::1]:81"]), is("::1", Some(81)));
        assert_eq!(of("/", &["[::1]"]), is("::1", None));
        assert_eq!(of("http://a.com/", &[]), is("a.com", None));
        assert_eq!(of("http://a.com:81/", &["A.com:81"]), is("a.com", Some(81)));
        for hosts in [
            &[][..],
            &[""],
            &["a.com", "a.com"],
            &["a.com:x"],
            &["a.com:99999"],
            &["a com"],
            &["u@a.com"],
            &["[::1"],
            &["a.com/x"],
        ] {
            assert_eq!(of("/", hosts), Err(()), "{hosts:?}");
        }
        assert_eq!(of("http://a.com/", &["b.com"]), Err(()));
    }

    #[test]
    fn a_client_cannot_have_the_marks_of_the_ingress_removed() {
        let mut headers = HeaderMap::new();
        headers.append(header::CONNECTION, HeaderValue::from_static("x-forwarded-for, X-A"));
        headers.append(header::CONNECTION, HeaderValue::from_static("x-b"));
        for name in ["x-forwarded-for", "x-a", "x-b", "te", "x-c"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("1"));
        }
        remove_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["x-c", "x-forwarded-for"]);
    }
}
