//! How a registry asks who pulls: the `WWW-Authenticate` header and Docker's token protocol.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use serde::Deserialize;

use crate::agent::image::credentials::Credential;
use crate::agent::image::distribution::{Fault, USER_AGENT};
use crate::agent::image::transport::Transport;

/// Largest answer of a token server, in bytes.
const TOKEN_BYTES_MAX: usize = 64 * 1024;

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A name and a password.
    Basic,
    /// A token of the server at `realm`.
    Bearer { realm: String, service: String, scope: String },
}

impl Challenge {
    /// Reads the header fields of an answer with code 401; tokens are preferred.
    pub(super) fn read(headers: &HeaderMap) -> Option<Self> {
        let values = headers.get_all(header::WWW_AUTHENTICATE).iter();
        let all = values.filter_map(|value| Self::parse(value.to_str().ok()?));
        all.max_by_key(|challenge| matches!(challenge, Self::Bearer { .. }))
    }

    fn parse(value: &str) -> Option<Self> {
        let (scheme, rest) = value.trim().split_once(' ').unwrap_or((value.trim(), ""));
        if scheme.eq_ignore_ascii_case("basic") {
            return Some(Self::Basic);
        }
        if !scheme.eq_ignore_ascii_case("bearer") {
            return None;
        }
        let (mut realm, mut service, mut scope) = (String::new(), String::new(), String::new());
        for (key, value) in parameters(rest) {
            match key.to_ascii_lowercase().as_str() {
                "realm" => realm = value,
                "service" => service = value,
                "scope" => scope = value,
                _ => {}
            }
        }
        (!realm.is_empty()).then_some(Self::Bearer { realm, service, scope })
    }
}

/// `key="value"` pairs, separated by commas outside of quotes.
fn parameters(mut rest: &str) -> Vec<(String, String)> {
    let mut all = Vec::new();
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([',', ' ']).to_owned();
        let (value, left) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').unwrap_or((quoted, "")),
            None => after.split_once(',').unwrap_or((after, "")),
        };
        all.push((key, value.trim().to_owned()));
        rest = left;
    }
    all
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// The `Authorization` field that answers `challenge`.
///
/// # Errors
///
/// [`Fault::Denied`]: this credential, or none, is not enough; try the next.
pub(super) async fn answer(
    transport: &Transport,
    challenge: &Challenge,
    credential: Option<&Credential>,
    repository: &str,
    is_tls: bool,
) -> Result<HeaderValue, Fault> {
    let Challenge::Bearer { realm, service, scope } = challenge else {
        return match credential {
            Some(Credential::Basic { username, password }) => basic(username, password),
            _ => Err(Fault::Denied("authorization required: no basic auth credentials".into())),
        };
    };
    let uri: Uri = realm.parse().map_err(|_| refused("its token server has no URL"))?;
    match uri.scheme_str() {
        Some("https") => {}
        Some("http") if !is_tls => {}
        // A password must not leave in the clear because a registry says so.
        _ => return Err(refused("its token server is not reached over HTTPS")),
    }
    let pull = format!("repository:{repository}:pull");
    let scope = if scope.is_empty() { &pull } else { scope };
    let request = match credential {
        Some(Credential::IdentityToken(token)) => {
            let form = form(&[
                ("grant_type", "refresh_token"),
                ("service", service),
                ("scope", scope),
                ("client_id", "edgeorc"),
                ("refresh_token", token),
            ]);
            Request::builder()
                .method(Method::POST)
                .uri(uri)
                .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .header(header::USER_AGENT, USER_AGENT)
                .body(Full::from(form))
        }
        other => {
            let mut pairs = vec![("service", service.as_str())];
            pairs.extend(scope.split(' ').map(|scope| ("scope", scope)));
            let separator = if uri.query().is_some() { '&' } else { '?' };
            let mut request = Request::get(format!("{realm}{separator}{}", form(&pairs)))
                .header(header::USER_AGENT, USER_AGENT);
            if let Some(Credential::Basic { username, password }) = other {
                request = request.header(header::AUTHORIZATION, basic(username, password)?);
            }
            request.body(Full::new(Bytes::new()))
        }
    };
    let request = request.map_err(|_| refused("its token server has no URL"))?;
    token(transport, request).await
}

async fn token(transport: &Transport, request: Request<Full<Bytes>>) -> Result<HeaderValue, Fault> {
    let answer = transport.send(request).await.map_err(unavailable)?;
    match answer.status().as_u16() {
        200..=299 => {}
        code @ (408 | 429 | 500..) => return Err(unavailable(code)),
        code => {
            let why = format!("failed to authorize: its token server answers {code}");
            return Err(Fault::Denied(why));
        }
    }
    let content = Limited::new(answer.into_body(), TOKEN_BYTES_MAX).collect().await;
    let content = content.map_err(unavailable)?.to_bytes();
    let answer: TokenAnswer =
        serde_json::from_slice(&content).map_err(|_| refused("its token server sent no token"))?;
    let token = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if token.is_empty() {
        return Err(refused("its token server sent no token"));
    }
    secret(format!("Bearer {token}"))
}

fn unavailable(cause: impl std::fmt::Display) -> Fault {
    Fault::unavailable(format!("its token server does not answer: {cause}"))
}

fn refused(why: &str) -> Fault {
    Fault::Refused(why.to_owned())
}

fn basic(username: &str, password: &str) -> Result<HeaderValue, Fault> {
    secret(format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

fn secret(value: String) -> Result<HeaderValue, Fault> {
    let mut value =
        HeaderValue::try_from(value).map_err(|_| refused("its token cannot be sent"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// `application/x-www-form-urlencoded`.
fn form(pairs: &[(&str, &str)]) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let put = |value: &str, text: &mut String| {
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                text.push(char::from(byte));
            } else {
                let _ = write!(text, "%{byte:02X}");
            }
        }
    };
    for (key, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        put(key, &mut text);
        text.push('=');
        put(value, &mut text);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_read_and_a_token_preferred() {
        let bearer = r#"Bearer realm="https://auth.example/token?x=1",service="reg, the first",scope="repository:a/b:pull,push""#;
        let mut headers = HeaderMap::new();
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static(bearer));
        headers.append(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"x\""));
        let wanted = Challenge::Bearer {
            realm: "https://auth.example/token?x=1".into(),
            service: "reg, the first".into(),
            scope: "repository:a/b:pull,push".into(),
        };
        assert_eq!(Challenge::read(&headers), Some(wanted));
        assert_eq!(Challenge::parse("Basic realm=x"), Some(Challenge::Basic));
        assert_eq!(Challenge::parse("Negotiate"), None);
        assert_eq!(Challenge::parse("Bearer"), None);
    }

    #[test]
    fn a_form_escapes_what_would_end_a_value() {
        assert_eq!(form(&[("a", "x&y=z"), ("b", "ä")]), "a=x%26y%3Dz&b=%C3%A4");
    }
}
