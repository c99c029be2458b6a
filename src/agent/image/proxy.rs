//! Proxies between this node and registries: those of the environment, or of `registries.yaml`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderValue, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tower::Service;

use crate::config::Proxies;

/// Why there is no connection.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Which proxy a request takes.
#[derive(Debug)]
pub(super) struct Rules(Matcher);

impl Rules {
    /// The rules of the environment.
    pub(super) fn of(proxies: &Proxies) -> Self {
        let Proxies { all, http, https, no } = proxies;
        Self(Matcher::builder().all(all).http(http).https(https).no(no).build())
    }

    /// The proxy on the way to `to`; registries on this machine have none.
    pub(super) fn find(&self, to: &Uri) -> Option<Proxy> {
        let host = to.host()?.trim_matches(['[', ']']);
        let ip = host.parse::<std::net::IpAddr>();
        if host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback()) {
            return None;
        }
        self.0.intercept(to).map(Proxy)
    }
}

/// A proxy, with the credential for it.
#[derive(Debug, Clone)]
pub(super) struct Proxy(Intercept);

impl Proxy {
    /// Reads `http://[user:password@]host:port`.
    pub(super) fn parse(url: &str) -> Option<Self> {
        let any = Uri::from_static("https://registry.invalid/");
        let proxy = Self(Matcher::builder().all(url).build().intercept(&any)?);
        proxy.is_plain().then_some(proxy)
    }

    fn is_plain(&self) -> bool {
        self.0.uri().scheme_str() == Some("http")
    }

    /// What proves to the proxy who asks, for requests that it reads itself.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        self.0.basic_auth().cloned()
    }
}

/// Connects to a registry, or to the proxy on the way to it.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    tcp: HttpConnector,
    proxy: Option<Proxy>,
}

impl Connector {
    pub(super) fn new(tcp: HttpConnector, proxy: Option<Proxy>) -> Self {
        Self { tcp, proxy }
    }
}

impl Service<Uri> for Connector {
    type Response = Line;
    type Error = Cause;
    type Future = BoxFuture<'static, Result<Line, Cause>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Cause>> {
        // A connector of TCP is always ready.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (mut tcp, proxy) = (self.tcp.clone(), self.proxy.clone());
        async move {
            let Some(proxy) = proxy else {
                return Ok(Line { io: tcp.call(to).await?, is_proxied: false });
            };
            let at = proxy.0.uri().clone();
            let name = at.authority().map(ToString::to_string).unwrap_or_default();
            if !proxy.is_plain() {
                return Err(format!("the proxy {name} is not one of http://").into());
            }
            let failed = |cause: &dyn std::fmt::Display| -> Cause {
                format!("the proxy {name} does not lead there: {cause}").into()
            };
            if to.scheme_str() == Some("http") {
                // It reads the request itself.
                let io = tcp.call(at).await.map_err(|cause| failed(&cause))?;
                return Ok(Line { io, is_proxied: true });
            }
            let mut tunnel = Tunnel::new(at, tcp);
            if let Some(authorization) = proxy.authorization() {
                tunnel = tunnel.with_auth(authorization);
            }
            let io = tunnel.call(to).await.map_err(|cause| failed(&cause))?;
            Ok(Line { io, is_proxied: false })
        }
        .boxed()
    }
}

/// A connection; a client must know whether a proxy reads what it sends.
#[derive(Debug)]
pub(super) struct Line {
    io: TokioIo<TcpStream>,
    is_proxied: bool,
}

impl Connection for Line {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.is_proxied)
    }
}

impl Read for Line {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl Write for Line {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(proxies: &Proxies, to: &str) -> Option<String> {
        let proxy = Rules::of(proxies).find(&to.parse().unwrap());
        proxy.map(|proxy| proxy.0.uri().authority().unwrap().to_string())
    }

    #[test]
    fn the_environment_says_which_registry_is_behind_which_proxy() {
        let proxies = Proxies {
            http: "http://plain:1".to_owned(),
            https: "user:p%40ss@secure:2".to_owned(),
            no: "internal.example,10.0.0.0/8,.lan".to_owned(),
            ..Proxies::default()
        };
        assert_eq!(found(&proxies, "http://r.example/v2").unwrap(), "plain:1");
        assert_eq!(found(&proxies, "https://r.example/v2").unwrap(), "secure:2");
        for direct in [
            "https://internal.example/v2",
            "https://a.internal.example:5000/v2",
            "http://10.1.2.3:5000/v2",
            "https://nas.lan/v2",
            "http://127.0.0.1:5000/v2",
            "http://[::1]:5000/v2",
            "http://localhost:5000/v2",
        ] {
            assert_eq!(found(&proxies, direct), None, "{direct}");
        }
        assert_eq!(found(&Proxies::default(), "https://r.example"), None);
        let all = Proxies { all: "http://all:3".to_owned(), ..Proxies::default() };
        assert_eq!(found(&all, "https://r.example").unwrap(), "all:3");
        assert!(!format!("{proxies:?}").contains("p%40ss"), "a password in the log");
    }

    #[test]
    fn a_proxy_is_one_of_http() {
        let proxy = Proxy::parse("http://user:pass@proxy.example:3128").unwrap();
        assert_eq!(proxy.authorization().unwrap(), "Basic dXNlcjpwYXNz");
        for bad in ["", "socks5://x:1", "https://x:1", "ftp://x"] {
            assert!(Proxy::parse(bad).is_none(), "{bad}");
        }
    }
}
