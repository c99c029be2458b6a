//! A TCP socket, for both versions of the interface.
//!
//! ```text
//! fresh ─ bind ─► fresh, bound ─ listen ─► listening
//!   └─ connect ─► connecting ─┬─► connected
//!                             └─► closed (why)
//! ```

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use tokio::sync::mpsc;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::address::{any_address, is_of_family, is_remote, is_unicast};
use super::code::Code;
use super::options::{Options, SharedOptions, not_zero};
use super::stream::Connection;
use crate::network::{Accepted, Binding, Intake, Listener, PodNet, SocketSlot};
use crate::types::BoxIo;

/// Connections that wait to be accepted, unless the guest says less; also the most it can say.
const BACKLOG_DEFAULT: usize = 128;
const BACKLOG_MAX: u64 = 128;

/// One socket.
pub(super) struct Tcp {
    /// Counts it among the pod's sockets.
    _slot: SocketSlot,
    /// Counts it among the connections that the container has taken, if it is one.
    _taken: Option<TaskTrackerToken>,
    is_ipv6: bool,
    options: SharedOptions,
    backlog: usize,
    binding: Option<Arc<Binding>>,
    state: State,
}

enum State {
    /// Neither connected nor listening; bound if there is a binding.
    Fresh,
    Connecting(Attempt, Ends),
    Connected {
        connection: Connection,
        ends: Ends,
        is_input_taken: bool,
        is_output_taken: bool,
    },
    Listening,
    /// A connect failed: good for nothing any more.
    Closed(Code),
}

#[derive(Debug, Clone, Copy)]
struct Ends {
    local: SocketAddr,
    remote: SocketAddr,
}

enum Attempt {
    Running(Pin<Box<dyn Future<Output = io::Result<BoxIo>> + Send>>),
    Done(io::Result<BoxIo>),
}

impl Attempt {
    fn poll_done(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Running(future) = self {
            *self = Self::Done(ready!(future.as_mut().poll(cx)));
        }
        Poll::Ready(())
    }
}

impl Tcp {
    pub(super) fn new(slot: SocketSlot, is_ipv6: bool) -> Self {
        Self {
            _slot: slot,
            _taken: None,
            is_ipv6,
            options: Options::tcp(),
            backlog: BACKLOG_DEFAULT,
            binding: None,
            state: State::Fresh,
        }
    }

    fn accepted(
        slot: SocketSlot,
        accepted: Accepted,
        net: &PodNet,
        options: Options,
        is_ipv6: bool,
    ) -> Self {
        let ends = Ends { local: accepted.local, remote: accepted.peer };
        let mut socket = Self::new(slot, is_ipv6);
        *socket.options.lock() = options;
        socket._taken = Some(accepted.token);
        socket.connected(Connection::new(accepted.io, Arc::clone(net.guests())), ends);
        socket
    }

    fn connected(&mut self, connection: Connection, ends: Ends) {
        self.state =
            State::Connected { connection, ends, is_input_taken: false, is_output_taken: false };
    }

    pub(super) fn is_ipv6(&self) -> bool {
        self.is_ipv6
    }

    pub(super) fn is_listening(&self) -> bool {
        matches!(self.state, State::Listening)
    }

    pub(super) fn is_bound(&self) -> bool {
        self.binding.is_some() || !matches!(self.state, State::Fresh)
    }

    fn check_fresh(&self) -> Result<(), Code> {
        if matches!(self.state, State::Fresh) { Ok(()) } else { Err(Code::InvalidState) }
    }

    pub(super) fn bind(&mut self, net: &Arc<PodNet>, at: SocketAddr) -> Result<(), Code> {
        if self.is_bound() {
            return Err(Code::InvalidState);
        }
        if !is_unicast(at.ip()) || !is_of_family(at, self.is_ipv6) {
            return Err(Code::InvalidArgument);
        }
        self.binding = Some(Arc::new(net.ports().bind(at)?));
        Ok(())
    }

    /// Begins to connect; [`Tcp::poll_connected`] tells the end.
    pub(super) fn start_connect(
        &mut self,
        net: &Arc<PodNet>,
        remote: SocketAddr,
    ) -> Result<(), Code> {
        self.check_fresh()?;
        if !is_unicast(remote.ip()) || !is_remote(remote) || !is_of_family(remote, self.is_ipv6) {
            return Err(Code::InvalidArgument);
        }
        let mut local = net.source(remote.ip());
        if let Some(binding) = &self.binding {
            let at = binding.address();
            let ip = if at.ip().is_unspecified() { local.ip() } else { at.ip() };
            local = SocketAddr::new(ip, at.port());
        }
        let mut attempt = Attempt::Running(Box::pin(Arc::clone(net).connect(local, remote)));
        // Starts it; a pipe in memory is there at once.
        let _ = attempt.poll_done(&mut noop());
        self.state = State::Connecting(attempt, Ends { local, remote });
        Ok(())
    }

    /// Ready when the attempt to connect has ended, and how.
    pub(super) fn poll_connected(
        &mut self,
        net: &PodNet,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Code>> {
        match &mut self.state {
            State::Connecting(attempt, _) => ready!(attempt.poll_done(cx)),
            State::Connected { .. } => return Poll::Ready(Ok(())),
            State::Closed(code) => return Poll::Ready(Err(*code)),
            State::Fresh | State::Listening => return Poll::Ready(Err(Code::InvalidState)),
        }
        let state = std::mem::replace(&mut self.state, State::Closed(Code::Other));
        let State::Connecting(Attempt::Done(result), ends) = state else {
            return Poll::Ready(Err(Code::Other));
        };
        match result {
            Ok(io) => {
                self.connected(Connection::new(io, Arc::clone(net.guests())), ends);
                Poll::Ready(Ok(()))
            }
            Err(error) => {
                let code = Code::from(error.kind());
                self.state = State::Closed(code);
                Poll::Ready(Err(code))
            }
        }
    }

    /// Ready when there is no attempt to connect under way.
    pub(super) fn poll_settled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.state {
            State::Connecting(attempt, _) => attempt.poll_done(cx),
            _ => Poll::Ready(()),
        }
    }

    /// Takes connections from now on; binds any port if none is bound.
    pub(super) fn listen(&mut self, net: &Arc<PodNet>, intake: &Intake) -> Result<Backlog, Code> {
        self.check_fresh()?;
        let binding = match &self.binding {
            Some(binding) => Arc::clone(binding),
            None => Arc::new(net.ports().bind(SocketAddr::new(any_address(self.is_ipv6), 0))?),
        };
        let (sender, queue) = mpsc::channel(self.backlog);
        binding.listen(Some(Listener::Tcp(sender, intake.clone())));
        self.binding = Some(Arc::clone(&binding));
        self.state = State::Listening;
        Ok(Backlog {
            queue,
            next: None,
            slot: None,
            net: Arc::clone(net),
            options: Arc::clone(&self.options),
            is_ipv6: self.is_ipv6,
            _binding: binding,
        })
    }

    /// The connection, to read from it; once.
    pub(super) fn take_input(&mut self) -> Result<Connection, Code> {
        match &mut self.state {
            State::Connected { connection, is_input_taken, .. } if !*is_input_taken => {
                *is_input_taken = true;
                Ok(connection.clone())
            }
            State::Closed(code) => Err(*code),
            _ => Err(Code::InvalidState),
        }
    }

    /// The connection, to write to it; once.
    pub(super) fn take_output(&mut self) -> Result<Connection, Code> {
        match &mut self.state {
            State::Connected { connection, is_output_taken, .. } if !*is_output_taken => {
                *is_output_taken = true;
                Ok(connection.clone())
            }
            State::Closed(code) => Err(*code),
            _ => Err(Code::InvalidState),
        }
    }

    /// The connection, to end a direction of it.
    pub(super) fn connection(&self) -> Result<&Connection, Code> {
        match &self.state {
            State::Connected { connection, .. } => Ok(connection),
            _ => Err(Code::InvalidState),
        }
    }

    pub(super) fn local_address(&self) -> Result<SocketAddr, Code> {
        match &self.state {
            State::Connected { ends, .. } => Ok(ends.local),
            State::Closed(code) => Err(*code),
            State::Connecting(..) => Err(Code::InvalidState),
            State::Fresh | State::Listening => {
                let binding = self.binding.as_ref().ok_or(Code::InvalidState)?;
                Ok(binding.address())
            }
        }
    }

    pub(super) fn remote_address(&self) -> Result<SocketAddr, Code> {
        match &self.state {
            State::Connected { ends, .. } => Ok(ends.remote),
            State::Closed(code) => Err(*code),
            State::Fresh | State::Connecting(..) | State::Listening => Err(Code::InvalidState),
        }
    }

    pub(super) fn set_backlog(&mut self, value: u64) -> Result<(), Code> {
        let value = not_zero(value)?.min(BACKLOG_MAX);
        match self.state {
            State::Fresh => {
                self.backlog = usize::try_from(value).unwrap_or(BACKLOG_DEFAULT);
                Ok(())
            }
            // The queue is made when the guest begins to listen.
            State::Listening => Err(Code::NotSupported),
            State::Connecting(..) | State::Connected { .. } => Err(Code::InvalidState),
            State::Closed(code) => Err(code),
        }
    }

    /// Reads an option.
    pub(super) fn option<T>(&self, read: impl FnOnce(&Options) -> T) -> Result<T, Code> {
        self.check_options()?;
        Ok(read(&self.options.lock()))
    }

    /// Changes an option.
    pub(super) fn set_option(
        &self,
        change: impl FnOnce(&mut Options) -> Result<(), Code>,
    ) -> Result<(), Code> {
        self.check_options()?;
        change(&mut self.options.lock())
    }

    fn check_options(&self) -> Result<(), Code> {
        match self.state {
            State::Connecting(..) => Err(Code::InvalidState),
            State::Closed(code) => Err(code),
            State::Fresh | State::Connected { .. } | State::Listening => Ok(()),
        }
    }
}

/// Connections not yet accepted. Keeps its port bound.
pub(super) struct Backlog {
    queue: mpsc::Receiver<Accepted>,
    next: Option<Accepted>,
    /// Waits for a socket that the pod may have.
    slot: Option<Pin<Box<dyn Future<Output = SocketSlot> + Send>>>,
    net: Arc<PodNet>,
    options: SharedOptions,
    is_ipv6: bool,
    _binding: Arc<Binding>,
}

impl Backlog {
    /// Ready when a connection waits.
    pub(super) fn poll_waiting(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.next.is_none() {
            self.next = ready!(self.queue.poll_recv(cx));
        }
        Poll::Ready(())
    }

    /// The next connection, if one waits. When the pod has too many sockets it goes on waiting: it
    /// may be accepted once another one is closed.
    pub(super) fn try_accept(&mut self) -> Option<Result<Tcp, Code>> {
        let _ = self.poll_waiting(&mut noop());
        self.next.as_ref()?;
        let Some(slot) = self.net.socket() else { return Some(Err(Code::SocketLimit)) };
        self.accept(slot).map(Ok)
    }

    /// Ready with the next connection, once the pod may have another socket.
    pub(super) fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Tcp> {
        ready!(self.poll_waiting(cx));
        let net = Arc::clone(&self.net);
        let slot = self.slot.get_or_insert_with(|| Box::pin(net.socket_soon()));
        let slot = ready!(slot.as_mut().poll(cx));
        self.slot = None;
        // There is none only if the listener has been closed.
        self.accept(slot).map_or(Poll::Pending, Poll::Ready)
    }

    fn accept(&mut self, slot: SocketSlot) -> Option<Tcp> {
        let accepted = self.next.take()?;
        let options = *self.options.lock();
        Some(Tcp::accepted(slot, accepted, &self.net, options, self.is_ipv6))
    }
}

fn noop() -> Context<'static> {
    Context::from_waker(Waker::noop())
}
