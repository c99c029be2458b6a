//! The sockets where clients from outside come in, and what serves them.

use std::net::SocketAddr;

use edgeorc_runtime::GuestThreads;
use tokio::net::{TcpListener, UdpSocket};

use crate::config::NodeSettings;
use crate::mesh::{DnsConfig, DnsSockets, Mesh};
use crate::roles::NodeError;
use crate::roles::node::Base;
use crate::rt::TaskGroup;

/// Where clients from outside come in, apart from the API.
pub(super) struct Listeners {
    http: TcpListener,
    https: Option<TcpListener>,
    dns: Option<DnsSockets>,
}

impl Listeners {
    /// Binds them.
    pub(super) async fn bind(settings: &NodeSettings) -> Result<Self, NodeError> {
        let at = SocketAddr::new(settings.bind_address, settings.ingress_port);
        Ok(Self {
            http: listen("ingress", "--ingress-port", at).await?,
            https: listen_https(settings).await?,
            dns: match &settings.dns {
                Some(dns) => Some(listen_dns(dns.bind).await?),
                None => None,
            },
        })
    }

    /// Serves ingress and names until the node ends.
    pub(super) fn serve(mut self, base: &Base, mesh: &Mesh, guest_threads: &GuestThreads) {
        if let Some(sockets) = self.dns.take() {
            spawn_dns(base, mesh.clone(), sockets);
        }
        serve_ingress(mesh, self, guest_threads, &base.tasks);
    }
}

/// The port for TLS, unless there is to be none. One that nobody asked for may be in use.
async fn listen_https(settings: &NodeSettings) -> Result<Option<TcpListener>, NodeError> {
    if settings.ingress_https_port == 0 {
        return Ok(None);
    }
    let at = SocketAddr::new(settings.bind_address, settings.ingress_https_port);
    match listen("HTTPS ingress", "--ingress-https-port", at).await {
        Err(err) if !settings.is_https_port_required => {
            tracing::warn!(%err, "no HTTPS at the ingress");
            Ok(None)
        }
        listening => listening.map(Some),
    }
}

/// Binds one; its error names the flag that moves it.
pub(super) async fn listen(
    what: &'static str,
    flag: &'static str,
    address: SocketAddr,
) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|cause| NodeError::listen(what, flag, address, cause))
}

/// The port of DNS is one by UDP and by TCP.
async fn listen_dns(at: SocketAddr) -> Result<DnsSockets, NodeError> {
    let tcp = listen("DNS", "--dns-bind", at).await?;
    let udp = UdpSocket::bind(at)
        .await
        .map_err(|cause| NodeError::listen("DNS", "--dns-bind", at, cause))?;
    tracing::info!(address = %at, "the cluster's names are served");
    Ok(DnsSockets { udp, tcp })
}

/// Serves the cluster's names to the host and its network.
fn spawn_dns(base: &Base, mesh: Mesh, sockets: DnsSockets) {
    let settings = &base.settings;
    let config = DnsConfig {
        upstreams: settings.dns.as_ref().map(|dns| dns.upstreams.clone()).unwrap_or_default(),
        service_ranges: settings.service_cidrs.iter().map(ToString::to_string).collect(),
    };
    let rng = base.rng.clone();
    base.tasks.spawn("dns", |_| async move { mesh.serve_dns(sockets, config, rng).await });
}

/// The ingress runs on the guests' threads, so that a request to a local pod changes no thread.
fn serve_ingress(
    mesh: &Mesh,
    listeners: Listeners,
    guest_threads: &GuestThreads,
    tasks: &TaskGroup,
) {
    let serving = mesh.clone();
    tasks.spawn_on(guest_threads.handle(), "ingress", |_| async move {
        serving.serve_ingress(listeners.http).await;
    });
    if let Some(https) = listeners.https {
        serve_http3(mesh, &https, guest_threads, tasks);
        let serving = mesh.clone();
        tasks.spawn_on(guest_threads.handle(), "ingress-https", |_| async move {
            serving.serve_ingress_tls(https).await;
        });
    }
}

/// HTTP/3 at the port of HTTPS. Without it clients go on with HTTP/2.
fn serve_http3(mesh: &Mesh, https: &TcpListener, threads: &GuestThreads, tasks: &TaskGroup) {
    let Ok(at) = https.local_addr() else { return };
    let bound = {
        let _threads = threads.handle().enter();
        mesh.bind_http3(at)
    };
    match bound {
        Ok(listener) => {
            let serving = mesh.clone();
            tasks.spawn_on(threads.handle(), "ingress-http3", |_| async move {
                serving.serve_ingress_http3(listener).await;
            });
        }
        Err(err) => tracing::warn!(%err, "no HTTP/3 at the ingress"),
    }
}
