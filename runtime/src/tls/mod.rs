//! `wasi:tls` 0.2 and 0.3 for guests: the client's side, over streams that the guest has already.
//!
//! Data in: handshakes of guests, on whatever transport. Data out: sessions with servers that the
//! container trusts ([`Trust`]).
//!
//! The interfaces are wasmtime's; only what is behind them is ours.
//!
//! # Invariants
//!
//! - No guest turns verification off: a server is trusted by certificates or not at all.
//! - A session counts as one of the pod's sockets, whatever it runs over.
//! - What the host computes for a session is the container's CPU time.

mod trust;

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tokio_rustls::{TlsConnector, client};
use wasmtime::component::{HasData, Linker, ResourceTable};
use wasmtime_wasi_tls::p2::{self, LinkOptions};
use wasmtime_wasi_tls::{
    Error, TlsProvider, TlsStream, TlsTransport, WasiTlsCtx, WasiTlsCtxBuilder, WasiTlsCtxView,
    WasiTlsView, p3,
};

pub(crate) use self::trust::{NodeTrust, Trust};
use crate::guest::Guest;
use crate::meter::Meter;
use crate::network::{PodNet, SocketSlot};

/// Both versions of the interface.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut options = LinkOptions::default();
    options.tls(true);
    p2::bindings::types::add_to_linker::<Guest, TlsOfP2>(linker, &options, |guest| {
        let (tls, table) = guest.tls_and_table();
        tls.p2(table)
    })?;
    p3::add_to_linker(linker)
}

struct TlsOfP2;

impl HasData for TlsOfP2 {
    type Data<'a> = WasiTlsCtxView<'a>;
}

impl WasiTlsView for Guest {
    fn tls(&mut self) -> WasiTlsCtxView<'_> {
        let (tls, table) = self.tls_and_table();
        tls.p3(table)
    }
}

/// What one guest opens sessions with. Costs nothing until it does.
pub(crate) struct Tls {
    net: Arc<PodNet>,
    trust: Arc<Trust>,
    meter: Arc<Meter>,
    p2: Option<WasiTlsCtx>,
    p3: Option<WasiTlsCtx>,
}

impl Tls {
    pub(crate) fn new(net: Arc<PodNet>, trust: Arc<Trust>, meter: Arc<Meter>) -> Self {
        Self { net, trust, meter, p2: None, p3: None }
    }

    /// Sessions of WASI 0.2 run in tasks of their own, beside the guest.
    fn p2<'a>(&'a mut self, table: &'a mut ResourceTable) -> WasiTlsCtxView<'a> {
        let Self { net, trust, meter, p2, .. } = self;
        let ctx = p2.get_or_insert_with(|| context(net, trust, Some(Arc::clone(meter))));
        WasiTlsCtxView { table, ctx }
    }

    /// Those of WASI 0.3 are driven by the guest's own polls, which are metered as they are.
    fn p3<'a>(&'a mut self, table: &'a mut ResourceTable) -> WasiTlsCtxView<'a> {
        let Self { net, trust, p3, .. } = self;
        let ctx = p3.get_or_insert_with(|| context(net, trust, None));
        WasiTlsCtxView { table, ctx }
    }
}

fn context(net: &Arc<PodNet>, trust: &Arc<Trust>, meter: Option<Arc<Meter>>) -> WasiTlsCtx {
    let client = Client { net: Arc::clone(net), trust: Arc::clone(trust), meter };
    WasiTlsCtxBuilder::new().provider(Box::new(client)).build()
}

/// Opens sessions.
struct Client {
    net: Arc<PodNet>,
    trust: Arc<Trust>,
    /// Takes the time of polls; `None` if the guest is charged for them anyway.
    meter: Option<Arc<Meter>>,
}

impl TlsProvider for Client {
    fn connect(
        &self,
        server_name: String,
        transport: Box<dyn TlsTransport>,
    ) -> Pin<Box<dyn Future<Output = Result<Box<dyn TlsStream>, Error>> + Send>> {
        let slot = self.net.socket();
        let (trust, meter) = (Arc::clone(&self.trust), self.meter.clone());
        let charged = self.meter.clone();
        let connecting = async move {
            let slot = slot.ok_or_else(|| Error::msg("the pod has too many open sockets"))?;
            let name = ServerName::try_from(server_name)
                .map_err(|_| Error::msg("not the name or address of a server"))?;
            let config = trust.config().await.map_err(Error::msg)?;
            let stream = TlsConnector::from(config)
                .connect(name, transport)
                .await
                .map_err(|error| Error::msg(trust.explain(&error)))?;
            let session = Session { stream, meter, _slot: slot };
            Ok(Box::new(session) as Box<dyn TlsStream>)
        };
        Box::pin(Charged { future: connecting, meter: charged })
    }
}

/// Polls, and charges the time it took.
fn charged<R>(meter: Option<&Meter>, poll: impl FnOnce() -> R) -> R {
    let Some(meter) = meter else { return poll() };
    let start = Instant::now();
    let result = poll();
    meter.charge(start.elapsed());
    result
}

pin_project! {
    /// A future whose polls are charged.
    struct Charged<F> {
        #[pin]
        future: F,
        meter: Option<Arc<Meter>>,
    }
}

impl<F: Future> Future for Charged<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        charged(this.meter.as_deref(), || this.future.poll(cx))
    }
}

/// One session.
struct Session {
    stream: client::TlsStream<Box<dyn TlsTransport>>,
    meter: Option<Arc<Meter>>,
    _slot: SocketSlot,
}

impl TlsStream for Session {}

impl AsyncRead for Session {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, meter, .. } = self.get_mut();
        charged(meter.as_deref(), || Pin::new(stream).poll_read(cx, buffer))
    }
}

impl AsyncWrite for Session {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self { stream, meter, .. } = self.get_mut();
        charged(meter.as_deref(), || Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}
