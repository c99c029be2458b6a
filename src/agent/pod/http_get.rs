//! The GET of a probe or hook: kubelet's request, its redirects, its verdict.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use edgeorc_runtime::Body;
use http::header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Empty};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};

use crate::agent::pod::probe::{Miss, PodNetwork, is_elsewhere, port_of};

/// What the agent calls itself.
const AGENT: &str = "kube-probe/1.36";
/// Bytes of an answer that are read; how it ends does not matter beyond.
const BODY_BYTES_MAX: usize = 10 * 1024;
/// Requests that lead to others before that is called a circle.
const REQUESTS_MAX: u32 = 10;

/// Sends the request; 200 to 399 is success. The text is a warning: the answer leads to another
/// host, where nobody follows.
pub(super) async fn http_get(
    network: &dyn PodNetwork,
    get: &HTTPGetAction,
    spec: &Container,
    ip: IpAddr,
) -> Result<Option<String>, Miss> {
    if get.scheme.as_deref() == Some("HTTPS") {
        return Err(Miss::Failed("httpGet with scheme HTTPS is not supported".to_owned()));
    }
    if is_elsewhere(get.host.as_deref(), ip) {
        let why = "httpGet with a host other than the pod is not supported: what the server is to \
                   read as its name is the header Host";
        return Err(Miss::Failed(why.to_owned()));
    }
    let mut to = SocketAddr::new(ip, port_of(&get.port, spec).map_err(Miss::Errored)?);
    let mut path = get.path.clone().unwrap_or_default();
    if !path.starts_with('/') {
        path.insert(0, '/');
    }
    let headers = headers(get)?;
    for _ in 0..REQUESTS_MAX {
        let response = send(network, to, &path, &headers).await?;
        let (status, location) = (response.status(), location(&response));
        let text = read(response.into_body()).await?;
        if !(200..400).contains(&status.as_u16()) {
            let code = status.as_u16();
            return Err(Miss::Failed(format!("HTTP probe failed with statuscode: {code}")));
        }
        match location.map(|location| next(&location, to, &path)) {
            Some(Some(found)) => (to, path) = found,
            Some(None) => return Ok(Some(terminated(&text))),
            None if status.is_redirection() => return Ok(Some(terminated(&text))),
            None => return Ok(None),
        }
    }
    Err(Miss::Failed(format!("stopped after {REQUESTS_MAX} redirects")))
}

fn terminated(text: &str) -> String {
    format!("Probe terminated redirects, Response body: {text}")
}

/// The headers of the spec, and those of ours that it does not name. One that it empties is not sent.
fn headers(get: &HTTPGetAction) -> Result<HeaderMap, Miss> {
    let mut headers = HeaderMap::new();
    for header in get.http_headers.iter().flatten() {
        let name = HeaderName::try_from(&header.name);
        let value = HeaderValue::try_from(&header.value);
        let (Ok(name), Ok(value)) = (name, value) else {
            return Err(Miss::Errored(format!("{:?} is no header with a value", header.name)));
        };
        headers.append(name, value);
    }
    for (name, value) in [(USER_AGENT, AGENT), (ACCEPT, "*/*")] {
        match headers.get(&name) {
            None => drop(headers.insert(name, HeaderValue::from_static(value))),
            Some(own) if own.is_empty() => drop(headers.remove(name)),
            Some(_) => {}
        }
    }
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    Ok(headers)
}

async fn send(
    network: &dyn PodNetwork,
    to: SocketAddr,
    path: &str,
    headers: &HeaderMap,
) -> Result<Response<Body>, Miss> {
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    let request = http::Request::get(format!("http://{to}{path}")).body(body);
    let mut request = request.map_err(|cause| Miss::Errored(cause.to_string()))?;
    *request.headers_mut() = headers.clone();
    if !headers.contains_key(HOST) {
        let host = HeaderValue::try_from(to.to_string());
        request.headers_mut().extend(host.ok().map(|host| (HOST, host)));
    }
    network.http(to, request).await.map_err(Miss::Failed)
}

/// The beginning of an answer's body. One that breaks off says nothing of the container.
async fn read(mut body: Body) -> Result<String, Miss> {
    let mut bytes = Vec::new();
    while bytes.len() < BODY_BYTES_MAX {
        match body.frame().await {
            Some(Ok(frame)) => bytes.extend_from_slice(&frame.into_data().unwrap_or_default()),
            Some(Err(cause)) => return Err(Miss::Errored(cause.to_string())),
            None => break,
        }
    }
    bytes.truncate(BODY_BYTES_MAX);
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Where a redirect leads, if this answer is one.
fn location(response: &Response<Body>) -> Option<String> {
    let is_followed = matches!(
        response.status(),
        StatusCode::MOVED_PERMANENTLY
            | StatusCode::FOUND
            | StatusCode::SEE_OTHER
            | StatusCode::TEMPORARY_REDIRECT
            | StatusCode::PERMANENT_REDIRECT
    );
    let location = response.headers().get(LOCATION).filter(|_| is_followed)?;
    location.to_str().ok().filter(|location| !location.is_empty()).map(str::to_owned)
}

/// The address and path of `location`, as seen from `path` at `at`; `None` on another host.
fn next(location: &str, at: SocketAddr, path: &str) -> Option<(SocketAddr, String)> {
    let location = location.split('#').next().unwrap_or_default();
    let whole = match location.strip_prefix("//") {
        Some(rest) => format!("http://{rest}"),
        None => location.to_owned(),
    };
    if let Some((scheme, _)) = whole.split_once("://").filter(|(s, _)| !s.contains(['/', '?'])) {
        let uri: Uri = whole.parse().ok()?;
        let host = uri.host()?.trim_matches(['[', ']']);
        let is_here = scheme.eq_ignore_ascii_case("http") && host.parse() == Ok(at.ip());
        let port = uri.port_u16().unwrap_or(80);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        return is_here.then(|| (SocketAddr::new(at.ip(), port), path.to_owned()));
    }
    let base = path.split('?').next().unwrap_or("/");
    let folder = base.rsplit_once('/').map_or("", |(folder, _)| folder);
    let found = match whole.chars().next() {
        Some('/') => whole,
        Some('?') => format!("{base}{whole}"),
        _ => format!("{folder}/{whole}"),
    };
    Some((at, without_dots(&found)))
}

/// RFC 3986, 5.2.4: a path without `.` and `..`.
fn without_dots(path: &str) -> String {
    let (path, query) = match path.split_once('?') {
        Some((path, query)) => (path, format!("?{query}")),
        None => (path, String::new()),
    };
    let mut kept = Vec::new();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => drop(kept.pop()),
            part => kept.push(part),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use async_trait::async_trait;
    use edgeorc_runtime::BoxIo;
    use http_body_util::{Full, StreamBody};
    use hyper::body::Frame;
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;

    /// Answers with a status and a `Location` by port and path, and keeps what it was asked.
    #[derive(Default)]
    struct Site {
        answers: BTreeMap<String, (u16, &'static str)>,
        asked: Mutex<Vec<(String, HeaderMap)>>,
        breaks_off: bool,
    }

    #[async_trait]
    impl PodNetwork for Site {
        async fn connect(&self, _: SocketAddr) -> std::io::Result<BoxIo> {
            Err(std::io::ErrorKind::ConnectionRefused.into())
        }

        async fn http(
            &self,
            to: SocketAddr,
            request: http::Request<Body>,
        ) -> Result<Response<Body>, String> {
            let path = request.uri().path_and_query().unwrap();
            let at = format!("{}{path}", to.port());
            self.asked.lock().push((at.clone(), request.headers().clone()));
            let (status, location) = self.answers.get(&at).copied().ok_or("refused")?;
            let mut response = Response::builder().status(status);
            if !location.is_empty() {
                response = response.header(LOCATION, location);
            }
            let body = if self.breaks_off {
                let frames = [Ok(Frame::data(Bytes::from("so f"))), Err("broke off".into())];
                StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
            } else {
                let text = Bytes::from("x".repeat(2 * BODY_BYTES_MAX));
                Full::new(text).map_err(|never| match never {}).boxed_unsync()
            };
            Ok(response.body(body).unwrap())
        }
    }

    fn site(answers: &[(&str, u16, &'static str)]) -> Site {
        let answers = answers.iter().map(|(at, status, to)| ((*at).to_owned(), (*status, *to)));
        Site { answers: answers.collect(), ..Site::default() }
    }

    async fn ask(site: &Site, more: Value) -> Result<Option<String>, Miss> {
        let mut get = json!({"port": "web", "path": "/a/b"});
        json_patch::merge(&mut get, &more);
        let get = serde_json::from_value(get).unwrap();
        let spec = json!({"name": "c", "ports": [{"name": "web", "containerPort": 80}]});
        let spec = serde_json::from_value(spec).unwrap();
        http_get(site, &get, &spec, IpAddr::from([10, 0, 0, 1])).await
    }

    #[tokio::test]
    async fn from_200_to_399_is_success() {
        for (status, is_success) in
            [(200, true), (204, true), (304, true), (399, true), (400, false), (503, false)]
        {
            let got = ask(&site(&[("80/a/b", status, "")]), json!({})).await;
            assert_eq!(got.is_ok(), is_success, "{status}");
            if let Err(why) = got {
                let words = format!("HTTP probe failed with statuscode: {status}");
                assert_eq!(why, Miss::Failed(words));
            }
        }
        let refused = ask(&site(&[]), json!({})).await;
        assert_eq!(refused, Err(Miss::Failed("refused".to_owned())));
        let slash = ask(&site(&[("80/up", 200, "")]), json!({"path": "up"})).await;
        assert_eq!(slash, Ok(None));
    }

    #[tokio::test]
    async fn a_redirect_is_followed_on_the_same_host_and_a_warning_on_another() {
        for location in [
            "/end",
            "http://10.0.0.1/end",
            "//10.0.0.1:80/end",
            "../end#top",
            "http://10.0.0.1:81/end",
        ] {
            for (status, wanted) in [(200, true), (500, false)] {
                let site = site(&[
                    ("80/a/b", 302, location),
                    ("80/end", status, ""),
                    ("81/end", status, ""),
                ]);
                assert_eq!(ask(&site, json!({})).await.is_ok(), wanted, "{location}");
                assert_eq!(site.asked.lock().len(), 2, "{location}");
            }
        }
        for location in ["http://example.org/", "https://10.0.0.1/", "http://10.0.0.2/end"] {
            let site = site(&[("80/a/b", 301, location)]);
            let warning = ask(&site, json!({})).await.unwrap().unwrap();
            let beginning = "Probe terminated redirects, Response body: x";
            assert!(warning.starts_with(beginning), "{warning}");
            let shown = "Probe terminated redirects, Response body: ".len() + BODY_BYTES_MAX;
            assert_eq!(warning.len(), shown, "10 KiB of the body are read");
            assert_eq!(site.asked.lock().len(), 1);
        }
        let circle = site(&[("80/a/b", 307, "/a/b")]);
        let got = ask(&circle, json!({})).await;
        assert_eq!(got, Err(Miss::Failed("stopped after 10 redirects".to_owned())));
        assert_eq!(circle.asked.lock().len(), 10);
    }

    #[tokio::test]
    async fn headers_of_the_spec_take_the_place_of_the_agents() {
        let asked = async |headers: Value| {
            let site = site(&[("80/a/b", 200, "")]);
            ask(&site, json!({"httpHeaders": headers})).await.unwrap();
            let asked = site.asked.lock().pop();
            asked.unwrap().1
        };
        let all = |headers: &HeaderMap, name: &str| {
            let values = headers.get_all(name).iter();
            values.map(|value| value.to_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let plain = asked(json!([])).await;
        assert_eq!(all(&plain, "user-agent"), [AGENT]);
        assert_eq!(all(&plain, "accept"), ["*/*"]);
        assert_eq!(all(&plain, "host"), ["10.0.0.1:80"]);
        assert_eq!(all(&plain, "connection"), ["close"]);
        let own = asked(json!([{"name": "user-agent", "value": "me"}, {"name": "Host", "value": "web"},
            {"name": "Accept", "value": ""}, {"name": "X", "value": "1"}, {"name": "x", "value": "2"}]))
        .await;
        assert_eq!(all(&own, "user-agent"), ["me"]);
        assert_eq!(all(&own, "host"), ["web"]);
        assert!(all(&own, "accept").is_empty());
        assert_eq!(all(&own, "x"), ["1", "2"]);
    }

    #[tokio::test]
    async fn what_cannot_be_asked_says_nothing_of_the_container() {
        let broken = Site { breaks_off: true, ..site(&[("80/a/b", 200, "")]) };
        assert_eq!(ask(&broken, json!({})).await, Err(Miss::Errored("broke off".to_owned())));
        let nowhere = ask(&site(&[]), json!({"port": "nobody"})).await;
        assert!(matches!(nowhere, Err(Miss::Errored(_))), "{nowhere:?}");
    }

    #[tokio::test]
    async fn what_is_not_supported_is_said() {
        let site = site(&[("80/a/b", 200, "")]);
        for (more, word) in [
            (json!({"scheme": "HTTPS"}), "scheme HTTPS"),
            (json!({"host": "example.org"}), "a host"),
        ] {
            let refused = ask(&site, more).await.unwrap_err();
            assert!(matches!(&refused, Miss::Failed(why) if why.contains(word)), "{refused:?}");
        }
        assert_eq!(ask(&site, json!({"host": "10.0.0.1"})).await, Ok(None));
    }
}
