//! A client from a kubeconfig file, for the command line.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderValue;
use http::header::AUTHORIZATION;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use secrecy::ExposeSecret as _;
use tower::ServiceBuilder;

use crate::client::connect::WithDeadline;

/// How long a TCP connection and its TLS handshake may take together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A client together with what its kubeconfig said about it.
#[derive(Clone)]
pub struct Connected {
    /// The client, with the context's credentials.
    pub client: kube::Client,
    /// The context's namespace, `default` when it names none.
    pub namespace: String,
    /// The server's URL, for messages.
    pub server: String,
}

impl std::fmt::Debug for Connected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connected")
            .field("namespace", &self.namespace)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

/// Why no client could be made of a kubeconfig.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file is missing, unreadable, not a kubeconfig, or lacks the context: tell the user.
    #[error("cannot use the kubeconfig {}", path.as_deref().unwrap_or(Path::new("(default)")).display())]
    Kubeconfig {
        /// The file that was named, if one was.
        path: Option<PathBuf>,
        /// What is wrong with it.
        #[source]
        cause: Box<KubeconfigError>,
    },
    /// The credentials in it do not make a TLS client: tell the user.
    #[error("cannot make a client of the kubeconfig's credentials")]
    Credentials(#[source] Box<kube::Error>),
    /// The user's bearer token cannot be read or sent: tell the user.
    #[error("cannot use the token of the kubeconfig's user")]
    Token(#[source] std::io::Error),
    /// The user gets credentials from a program: tell the user.
    #[error(
        "the kubeconfig's user gets its credentials from a plugin, which edgeorc does not run; use kubectl, or a kubeconfig with a certificate or a token"
    )]
    Plugin,
    /// The kubeconfig asks for something that would be ignored: tell the user.
    #[error("the kubeconfig asks for {what}, which edgeorc does not support; {instead}")]
    Unsupported {
        /// What it asks for.
        what: &'static str,
        /// What to do.
        instead: &'static str,
    },
}

/// A client for `context` (or the current one) of the kubeconfig at `path`.
///
/// Without `path`: `$KUBECONFIG`, then `~/.kube/config`, as kubectl does. Nothing is sent yet.
///
/// # Errors
///
/// [`ConnectError`], when the file or its credentials cannot be used.
pub async fn from_kubeconfig(
    path: Option<&Path>,
    context: Option<&str>,
) -> Result<Connected, ConnectError> {
    let failed =
        |cause| ConnectError::Kubeconfig { path: path.map(Path::to_owned), cause: Box::new(cause) };
    let kubeconfig = path.map_or_else(Kubeconfig::read, Kubeconfig::read_from).map_err(failed)?;
    let options =
        KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    refuse_unsupported(&kubeconfig, context)?;
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed)?;
    let namespace = config.default_namespace.clone();
    let server = config.cluster_url.to_string();
    let client = client_of(config)?;
    Ok(Connected { client, namespace, server })
}

/// Refuses what would be ignored without a word. What the context names but does not exist is left
/// to the loader.
fn refuse_unsupported(kubeconfig: &Kubeconfig, context: Option<&str>) -> Result<(), ConnectError> {
    let named = context.or(kubeconfig.current_context.as_deref());
    let context = kubeconfig.contexts.iter().find(|c| Some(c.name.as_str()) == named);
    let Some(context) = context.and_then(|c| c.context.as_ref()) else { return Ok(()) };
    let cluster = kubeconfig.clusters.iter().find(|c| c.name == context.cluster);
    let cluster = cluster.and_then(|c| c.cluster.as_ref());
    if cluster.and_then(|c| c.proxy_url.as_deref()).is_some_and(|url| !url.is_empty()) {
        return Err(ConnectError::Unsupported {
            what: "a proxy (proxy-url)",
            instead: "remove it when the server can be reached directly, or use kubectl",
        });
    }
    let user = kubeconfig.auth_infos.iter().find(|u| Some(&u.name) == context.user.as_ref());
    let Some(user) = user.and_then(|u| u.auth_info.as_ref()) else { return Ok(()) };
    if user.username.is_some() || user.password.is_some() {
        return Err(ConnectError::Unsupported {
            what: "a user name and password",
            instead: "use a kubeconfig with a certificate or a token",
        });
    }
    if user.exec.is_some() || user.auth_provider.is_some() {
        return Err(ConnectError::Plugin);
    }
    Ok(())
}

/// A direct connection (no proxy, whatever the environment says) with the user's certificate or token.
///
/// Not kube's own client, for two reasons. Nagle's algorithm: a TLS handshake ends with two small
/// writes, and the second would wait 40 ms for the acknowledgement of the first. And size: its
/// credential plugins bring parsers that are half a percent of the program.
fn client_of(mut config: kube::Config) -> Result<kube::Client, ConnectError> {
    let failed = |err| ConnectError::Credentials(Box::new(err));
    let token = token_of(&config).map_err(ConnectError::Token)?;
    if let Some(token) = token.filter(|token| !token.trim().is_empty()) {
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
            .map_err(|_| ConnectError::Token(std::io::ErrorKind::InvalidData.into()))?;
        value.set_sensitive(true);
        config.headers.push((AUTHORIZATION, value));
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let https = config.rustls_https_connector_with_connector(tcp).map_err(failed)?;
    let https = WithDeadline::new(https, CONNECT_DEADLINE);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .layer(config.extra_headers_layer().map_err(failed)?)
        .service(HttpClient::builder(TokioExecutor::new()).build(https));
    Ok(kube::Client::new(service, config.default_namespace))
}

/// The bearer token that the kubeconfig holds or names; a file goes first, as in client-go.
fn token_of(config: &kube::Config) -> std::io::Result<Option<String>> {
    let user = &config.auth_info;
    match &user.token_file {
        Some(path) => std::fs::read_to_string(path).map(Some),
        None => Ok(user.token.as_ref().map(|token| token.expose_secret().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A kubeconfig whose user is `user`, in YAML flow style.
    async fn connect(user: &str) -> Result<Connected, ConnectError> {
        connect_to("server: 'https://127.0.0.1:6443'", user).await
    }

    async fn connect_to(cluster: &str, user: &str) -> Result<Connected, ConnectError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c,
            clusters: [{{name: k, cluster: {{{cluster}}}}}],
            users: [{{name: u, user: {user}}}],
            contexts: [{{name: c, context: {{cluster: k, user: u, namespace: shop}}}}]}}"
        );
        std::fs::write(&path, text).unwrap();
        from_kubeconfig(Some(&path), None).await
    }

    #[tokio::test]
    async fn a_token_makes_a_client_and_a_plugin_does_not() {
        let connected = connect("{token: abc}").await.unwrap();
        assert_eq!(connected.namespace, "shop");
        let plugin = "{exec: {apiVersion: client.authentication.k8s.io/v1, command: x}}";
        assert!(matches!(connect(plugin).await, Err(ConnectError::Plugin)));
        let missing = connect("{tokenFile: /no/such/file}").await;
        assert!(matches!(missing, Err(ConnectError::Token(_))));
        let broken = connect("{token: \"a\\nb\"}").await;
        assert!(matches!(broken, Err(ConnectError::Token(_))));
    }

    /// What the server hears as `Authorization` when `user` asks for something.
    async fn authorization(user: &str) -> Option<String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let connected = connect_to(&format!("server: '{server}'"), user).await.unwrap();
        let request = http::Request::get("/x").body(kube::client::Body::empty()).unwrap();
        let ask = async { connected.client.send(request).await.map(|_| ()) };
        let hear = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let count = stream.read(&mut head).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
            String::from_utf8_lossy(&head[..count]).to_lowercase()
        };
        let (asked, head) = tokio::join!(ask, hear);
        asked.unwrap();
        head.lines().find_map(|l| l.strip_prefix("authorization: ").map(str::to_owned))
    }

    #[tokio::test]
    async fn a_token_and_a_token_file_reach_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "of-the-file\n").unwrap();
        let file = format!("{{tokenFile: '{}'}}", path.display());
        assert_eq!(authorization(&file).await.as_deref(), Some("bearer of-the-file"));
        assert_eq!(authorization("{token: abc}").await.as_deref(), Some("bearer abc"));
        assert_eq!(authorization("{token: ''}").await, None);
    }

    #[tokio::test]
    async fn what_is_not_supported_is_refused_by_name() {
        let refused = |result: Result<Connected, ConnectError>| result.unwrap_err().to_string();
        let text = refused(connect("{username: a, password: b}").await);
        assert!(text.contains("user name and password") && text.contains("token"), "{text}");
        let text = refused(connect("{auth-provider: {name: gcp}}").await);
        assert!(text.contains("plugin"), "{text}");
        let proxied = "server: 'https://127.0.0.1:6443', proxy-url: 'http://127.0.0.1:1'";
        let text = refused(connect_to(proxied, "{token: abc}").await);
        assert!(text.contains("proxy-url"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_is_silent_in_the_handshake_is_given_up() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("server: 'https://{}'", listener.local_addr().unwrap());
        let connected = connect_to(&server, "{token: abc}").await.unwrap();
        let request = http::Request::get("/x").body(kube::client::Body::empty()).unwrap();
        let asked = connected.client.send(request);
        let asked = tokio::time::timeout(Duration::from_secs(3600), asked).await;
        let error = asked.expect("it gives up by itself").unwrap_err();
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(inner) = cause {
            text.push_str(&format!(": {inner}"));
            cause = inner.source();
        }
        assert!(text.contains("10 s") && text.contains("TLS handshake"), "{text}");
    }
}
