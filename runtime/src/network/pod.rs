//! One pod on the network.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::PIPE_BYTES;
use super::client;
use super::datagrams::Budget;
use super::error::{HttpError, Unsent};
use super::ports::{Accepted, BindError, Binding, Intake, Listener, Ports, unspecified, wildcards};
use crate::serve::serve_pipe;
use crate::tasks::Guests;
use crate::types::{Body, BodyError, BoxIo, PodConfig, PodId, Uplink};

/// Peer address of a connection to `to` whose caller has none.
pub(crate) fn unknown_peer(to: SocketAddr) -> SocketAddr {
    SocketAddr::new(unspecified(to.ip()), 0)
}

/// Sockets that all guests of one pod may have open at the same time.
const SOCKETS_PER_POD_MAX: usize = 1024;
/// Connections to a pod's listeners that no guest has accepted yet.
const UNACCEPTED_PER_POD_MAX: usize = 512;
/// Names that one pod looks up at the same time; further ones wait.
const LOOKUPS_PER_POD_MAX: usize = 4;

/// One open socket of a pod.
#[derive(Debug)]
pub(crate) struct SocketSlot(#[expect(dead_code, reason = "counts")] OwnedSemaphorePermit);

/// A pod's addresses, ports and ways out.
pub(crate) struct PodNet {
    id: PodId,
    /// Namespace and uid, to be shared.
    owner: (Arc<str>, Arc<str>),
    hostname: String,
    ips: Vec<IpAddr>,
    hosts: Vec<(String, IpAddr)>,
    searches: Vec<String>,
    ndots: usize,
    ports: Arc<Ports>,
    udp_ports: Arc<Ports>,
    sockets: Arc<Semaphore>,
    unaccepted: Arc<Semaphore>,
    lookups: Semaphore,
    /// What the pod's datagrams may take.
    pub(super) budget: Budget,
    guests: Arc<Guests>,
    pub(super) uplink: Arc<dyn Uplink>,
    /// Ends the pod's connections that no guest owns.
    pub(crate) over: CancellationToken,
}

impl std::fmt::Debug for PodNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodNet")
            .field("id", &self.id)
            .field("ips", &self.ips)
            .finish_non_exhaustive()
    }
}

impl PodNet {
    pub(crate) fn new(
        pod: &PodConfig,
        guests: Arc<Guests>,
        uplink: Arc<dyn Uplink>,
        over: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: pod.id.clone(),
            owner: (pod.id.namespace.as_str().into(), pod.id.uid.as_str().into()),
            hostname: pod.hostname.clone(),
            ips: pod.ips.clone(),
            hosts: pod.hosts.clone(),
            searches: pod.searches.clone(),
            ndots: pod.ndots,
            ports: Ports::new(pod.ips.clone()),
            udp_ports: Ports::new(pod.ips.clone()),
            sockets: Arc::new(Semaphore::new(SOCKETS_PER_POD_MAX)),
            unaccepted: Arc::new(Semaphore::new(UNACCEPTED_PER_POD_MAX)),
            lookups: Semaphore::new(LOOKUPS_PER_POD_MAX),
            budget: Budget::default(),
            guests,
            uplink,
            over,
        })
    }

    pub(crate) fn id(&self) -> &PodId {
        &self.id
    }

    pub(crate) fn owner(&self) -> (Arc<str>, Arc<str>) {
        (Arc::clone(&self.owner.0), Arc::clone(&self.owner.1))
    }

    pub(crate) fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    pub(crate) fn hostname(&self) -> &str {
        &self.hostname
    }

    pub(crate) fn ports(&self) -> &Arc<Ports> {
        &self.ports
    }

    pub(crate) fn udp_ports(&self) -> &Arc<Ports> {
        &self.udp_ports
    }

    pub(crate) fn guests(&self) -> &Arc<Guests> {
        &self.guests
    }

    /// Takes a socket from the pod's number, if there is one left.
    pub(crate) fn socket(&self) -> Option<SocketSlot> {
        Arc::clone(&self.sockets).try_acquire_owned().ok().map(SocketSlot)
    }

    /// As [`PodNet::socket`]; waits until one is left.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn socket_soon(self: Arc<Self>) -> SocketSlot {
        match Arc::clone(&self.sockets).acquire_owned().await {
            Ok(permit) => SocketSlot(permit),
            // The number is never closed.
            Err(_) => std::future::pending().await,
        }
    }

    /// Binds a port at all of the pod's addresses.
    pub(crate) fn bind_all(&self, port: u16) -> Result<Vec<Binding>, BindError> {
        wildcards(port).into_iter().map(|at| self.ports.bind(at)).collect()
    }

    /// Whether an address is the pod's own.
    pub(crate) fn is_own(&self, ip: IpAddr) -> bool {
        ip.is_loopback() || self.ips.contains(&ip)
    }

    /// The pod's address that a peer at `to` sees. A pod without an address of that family has
    /// none to show.
    pub(crate) fn source_ip(&self, to: IpAddr) -> IpAddr {
        if self.is_own(to) {
            return to;
        }
        let same_family = |ip: &&IpAddr| ip.is_ipv4() == to.is_ipv4();
        self.ips.iter().find(same_family).copied().unwrap_or(unspecified(to))
    }

    /// The near end of a connection to `to` from a socket that is bound to nothing.
    pub(crate) fn source(&self, to: IpAddr) -> SocketAddr {
        SocketAddr::new(self.source_ip(to), self.ports.ephemeral())
    }

    /// Who listens at `to`, or does in a moment.
    async fn listener(&self, to: SocketAddr) -> Option<Listener> {
        match self.ports.listener(to) {
            Some(listener) => Some(listener),
            None => self.over.run_until_cancelled(self.ports.listener_soon(to)).await.flatten(),
        }
    }

    /// Connects to a listener of this pod.
    pub(crate) async fn dial(
        self: &Arc<Self>,
        from: SocketAddr,
        to: SocketAddr,
    ) -> io::Result<BoxIo> {
        match self.listener(to).await.ok_or(io::ErrorKind::ConnectionRefused)? {
            Listener::Udp(_) => Err(io::ErrorKind::ConnectionRefused.into()),
            Listener::Tcp(backlog, intake) => {
                Ok(Box::new(self.enqueue(&backlog, &intake, from, to)?))
            }
            Listener::Http(_) => {
                let (near, far) = tokio::io::duplex(PIPE_BYTES);
                // Ends with the connection or with the pod; who serves its requests may change.
                drop(self.guests.spawn(serve_pipe(far, Arc::clone(self), to)));
                Ok(Box::new(near))
            }
        }
    }

    /// A guest of this pod connects to `to`.
    pub(crate) async fn connect(
        self: Arc<Self>,
        from: SocketAddr,
        to: SocketAddr,
    ) -> io::Result<BoxIo> {
        if self.is_own(to.ip()) {
            return self.dial(from, to).await;
        }
        if from.ip().is_loopback() {
            // Nothing leads out of the loopback, and nobody else may look as if from there.
            return Err(io::ErrorKind::HostUnreachable.into());
        }
        self.uplink.connect(&self.id, from, to).await
    }

    /// A guest of this pod looks up a name.
    pub(crate) async fn resolve(self: Arc<Self>, name: String) -> Vec<IpAddr> {
        if let Ok(ip) = name.parse() {
            return vec![ip];
        }
        if name == "localhost" {
            return vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        }
        let own = self.own_names(&name);
        if !own.is_empty() {
            return own;
        }
        if name == self.hostname {
            return self.ips.clone();
        }
        // Never closed.
        let Ok(_turn) = self.lookups.acquire().await else { return Vec::new() };
        for whole in self.whole_names(&name) {
            let found = self.uplink.resolve(&self.id, &whole).await;
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    /// The whole names that `name` may stand for, in the order in which a resolver tries them.
    fn whole_names(&self, name: &str) -> Vec<String> {
        // A trailing dot: the name is whole.
        if name.ends_with('.') {
            return vec![name.to_owned()];
        }
        let searched = self.searches.iter().map(|domain| format!("{name}.{domain}."));
        let itself = std::iter::once(format!("{name}."));
        if name.matches('.').count() >= self.ndots {
            itself.chain(searched).collect()
        } else {
            searched.chain(itself).collect()
        }
    }

    /// The addresses that the pod itself gives to a name.
    fn own_names(&self, name: &str) -> Vec<IpAddr> {
        let name = name.trim_end_matches('.');
        let named = self.hosts.iter().filter(|(host, _)| host.eq_ignore_ascii_case(name));
        named.map(|(_, ip)| *ip).collect()
    }

    /// A request by one of the pod's own names goes to its address; the name stays in `Host`.
    fn with_own_names(&self, mut request: http::Request<Body>) -> http::Request<Body> {
        let Some(authority) = request.uri().authority().cloned() else { return request };
        let Some(ip) = self.own_names(authority.host()).first().copied() else { return request };
        let host = if ip.is_ipv6() { format!("[{ip}]") } else { ip.to_string() };
        let address = match authority.port_u16() {
            Some(port) => format!("{host}:{port}"),
            None => host,
        };
        let mut parts = request.uri().clone().into_parts();
        parts.authority = address.parse().ok();
        if let Ok(uri) = http::Uri::from_parts(parts) {
            *request.uri_mut() = uri;
            if let Ok(name) = http::HeaderValue::from_str(authority.as_str()) {
                request.headers_mut().entry(http::header::HOST).or_insert(name);
            }
        }
        request
    }

    /// A request for a listener of this pod.
    pub(crate) async fn http(
        self: Arc<Self>,
        to: SocketAddr,
        mut request: http::Request<Body>,
    ) -> Result<http::Response<Body>, HttpError> {
        loop {
            return match self.listener(to).await {
                Some(Listener::Http(service)) => match service.call(request).await {
                    // It went between the two: another run has its port by now, or nobody.
                    Err(HttpError::Refused(unsent)) if service.has_heir() => {
                        request = unsent.into_request();
                        continue;
                    }
                    answer => answer,
                },
                Some(Listener::Tcp(backlog, intake)) => {
                    match self.enqueue(&backlog, &intake, unknown_peer(to), to) {
                        Ok(pipe) => {
                            client::send(&self.guests, self.over.clone(), pipe, request).await
                        }
                        Err(_) => Err(HttpError::Refused(Unsent::new(request))),
                    }
                }
                Some(Listener::Udp(_)) | None => Err(HttpError::Refused(Unsent::new(request))),
            };
        }
    }

    /// A guest of this pod sends a request.
    pub(crate) async fn send(
        self: Arc<Self>,
        request: http::Request<Body>,
    ) -> Result<http::Response<Body>, BodyError> {
        let request = self.with_own_names(request);
        match self.own_address(request.uri()) {
            Some(to) => Ok(self.http(to, request).await?),
            None => self.uplink.http(&self.id, request).await,
        }
    }

    /// The listener's address if the authority names this pod.
    fn own_address(&self, uri: &http::Uri) -> Option<SocketAddr> {
        let authority = uri.authority()?;
        let host = authority.host().trim_matches(['[', ']']);
        let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        let port = authority.port_u16().unwrap_or(default);
        let ip = match host {
            "localhost" => {
                let (four, six) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
                let listens = |ip| self.ports.listener(SocketAddr::new(ip, port)).is_some();
                if listens(six) && !listens(four) { six } else { four }
            }
            _ => host.parse().ok()?,
        };
        self.is_own(ip).then_some(SocketAddr::new(ip, port))
    }

    /// Puts a connection before a guest's listener.
    fn enqueue(
        &self,
        backlog: &tokio::sync::mpsc::Sender<Accepted>,
        intake: &Intake,
        from: SocketAddr,
        to: SocketAddr,
    ) -> io::Result<tokio::io::DuplexStream> {
        let refused = io::ErrorKind::ConnectionRefused;
        if intake.taken.is_closed() {
            return Err(refused.into());
        }
        let _waits = Arc::clone(&self.unaccepted).try_acquire_owned().map_err(|_| refused)?;
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let token = intake.taken.token();
        let peer = if from.is_ipv4() == to.is_ipv4() { from } else { unknown_peer(to) };
        backlog
            .try_send(Accepted { io: Box::new(far), peer, local: to, token, _waits })
            .map_err(|_| refused)?;
        Ok(near)
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use http_body_util::BodyExt as _;

    use super::*;

    /// Knows one name, and tells where requests go.
    struct Outside;

    #[async_trait]
    impl Uplink for Outside {
        async fn connect(&self, _: &PodId, _: SocketAddr, _: SocketAddr) -> io::Result<BoxIo> {
            Err(io::ErrorKind::ConnectionRefused.into())
        }

        async fn resolve(&self, _: &PodId, name: &str) -> Vec<IpAddr> {
            let known = name == "db.example.org." || name == "alias.test.";
            if known { vec![[192, 0, 2, 9].into()] } else { Vec::new() }
        }

        async fn http(
            &self,
            _: &PodId,
            request: http::Request<Body>,
        ) -> Result<http::Response<Body>, BodyError> {
            let host = request.headers().get(http::header::HOST).cloned();
            let to = request.uri().authority().map(ToString::to_string).unwrap_or_default();
            let mut answer = http::Response::new(request.into_body());
            answer.headers_mut().insert("to", to.parse()?);
            answer.headers_mut().extend(host.map(|host| (http::header::HOST, host)));
            Ok(answer)
        }
    }

    fn pod() -> Arc<PodNet> {
        let word = |text: &str| text.to_owned();
        let config = PodConfig {
            id: PodId { namespace: word("n"), name: word("p"), uid: word("u") },
            ips: vec![[10, 42, 0, 2].into()],
            hostname: word("p"),
            memory_bytes_max: None,
            hosts: vec![
                (word("alias.test"), [10, 1, 2, 3].into()),
                (word("Six"), Ipv6Addr::LOCALHOST.into()),
            ],
            searches: vec![word("example.com"), word("example.org")],
            ndots: 2,
        };
        let guests = Guests::start(1).unwrap();
        PodNet::new(&config, Arc::new(guests), Arc::new(Outside), CancellationToken::new())
    }

    #[tokio::test]
    async fn names_are_tried_in_the_order_of_the_pods_resolver() {
        let pod = pod();
        assert_eq!(pod.whole_names("a"), ["a.example.com.", "a.example.org.", "a."]);
        assert_eq!(pod.whole_names("a.b"), ["a.b.example.com.", "a.b.example.org.", "a.b."]);
        assert_eq!(
            pod.whole_names("a.b.c"),
            ["a.b.c.", "a.b.c.example.com.", "a.b.c.example.org."]
        );
        assert_eq!(pod.whole_names("a.b."), ["a.b."]);
    }

    #[tokio::test]
    async fn a_pods_own_names_are_asked_first_and_then_its_searches() {
        let pod = pod();
        for (name, ips) in [
            ("alias.test", vec![IpAddr::from([10, 1, 2, 3])]),
            ("ALIAS.test.", vec![[10, 1, 2, 3].into()]),
            ("six", vec![Ipv6Addr::LOCALHOST.into()]),
            ("db", vec![[192, 0, 2, 9].into()]),
            ("db.", vec![]),
            ("nobody", vec![]),
        ] {
            assert_eq!(Arc::clone(&pod).resolve(name.to_owned()).await, ips, "{name}");
        }
    }

    #[tokio::test]
    async fn a_request_by_an_own_name_goes_to_its_address_and_keeps_the_name() {
        let body = http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync();
        let request = http::Request::get("http://alias.test:81/x").body(body).unwrap();
        let answer = pod().send(request).await.unwrap();
        assert_eq!(answer.headers()["to"], "10.1.2.3:81");
        assert_eq!(answer.headers()["host"], "alias.test:81");
    }
}
