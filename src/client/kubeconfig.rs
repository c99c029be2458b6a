//! A client from a kubeconfig file, for the command line.

use std::path::{Path, PathBuf};

use http::HeaderValue;
use http::header::AUTHORIZATION;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt as _;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use secrecy::ExposeSecret as _;
use tower::ServiceBuilder;

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
    let config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(failed)?;
    let namespace = config.default_namespace.clone();
    let server = config.cluster_url.to_string();
    let client = client_of(config)?;
    Ok(Connected { client, namespace, server })
}

/// A direct connection (no proxy) with the user's certificate or token.
///
/// Not kube's own client, for two reasons. Nagle's algorithm: a TLS handshake ends with two small
/// writes, and the second would wait 40 ms for the acknowledgement of the first. And size: its
/// credential plugins bring parsers that are half a percent of the program.
fn client_of(mut config: kube::Config) -> Result<kube::Client, ConnectError> {
    if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
        return Err(ConnectError::Plugin);
    }
    let failed = |err| ConnectError::Credentials(Box::new(err));
    if let Some(token) = token_of(&config).map_err(ConnectError::Token)? {
        let mut value = HeaderValue::try_from(format!("Bearer {}", token.trim()))
            .map_err(|_| ConnectError::Token(std::io::ErrorKind::InvalidData.into()))?;
        value.set_sensitive(true);
        config.headers.push((AUTHORIZATION, value));
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_connect_timeout(config.connect_timeout);
    let https = config.rustls_https_connector_with_connector(tcp).map_err(failed)?;
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
    use super::*;

    /// A kubeconfig whose user is `user`, in YAML flow style.
    async fn connect(user: &str) -> Result<Connected, ConnectError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config");
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c,
            clusters: [{{name: k, cluster: {{server: 'https://127.0.0.1:6443'}}}}],
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
}
