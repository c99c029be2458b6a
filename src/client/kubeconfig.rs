//! A client from a kubeconfig file, for the command line.

use std::path::{Path, PathBuf};

use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};

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
    let client =
        kube::Client::try_from(config).map_err(|err| ConnectError::Credentials(Box::new(err)))?;
    Ok(Connected { client, namespace, server })
}
