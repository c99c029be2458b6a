//! `pods/exec`, `pods/attach` and `pods/portforward`: streams between a client and the agent of the
//! pod's node.
//!
//! Data in: an upgrade request, then WebSocket messages or SPDY frames. Data out: requests to the
//! agent, one for each command or forwarded connection, whose bodies carry the streams.
//!
//! ```text
//! kubectl ── WebSocket v5/v4, SPDY/3.1 ──► here ── HTTP over the agent's QUIC connection ──► agent
//! ```
//!
//! # Invariants
//!
//! - WebSocket and SPDY end here; an agent sees one simple framing.
//! - Nothing is asked of the agent before the client's connection has changed its protocol: a
//!   client that tries another protocol has run nothing yet.
//! - A session ends with its client, with the command, with this server, or after [`IDLE_MAX`].

mod client;
mod negotiate;
mod node;
mod port_forward;
mod remote_command;
mod spdy_command;
mod target;

use std::time::Duration;

use axum::body::Body;
use http::{Method, Response};
use hyper_util::rt::TokioIo;

use crate::api::status::Status;
use crate::apiserver::error::ApiError;
use crate::apiserver::router::Call;
use negotiate::{Protocol, Switch};
pub(super) use node::exchange;
pub(super) use target::Target;

/// A session on which nothing moves for this long is ended, as by kubelet's
/// `streamingConnectionIdleTimeout`.
const IDLE_MAX: Duration = Duration::from_secs(4 * 60 * 60);
/// How often a client is asked whether it is still there: one whose command reads nothing is not read from,
/// and its end is seen when something is written to it.
const PING: Duration = Duration::from_secs(30);
/// Sessions that one server holds at once.
pub(super) const SESSIONS_MAX: usize = 512;

/// Which subresource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Exec,
    Attach,
    PortForward,
}

impl Kind {
    /// From the last part of the path.
    pub(super) fn of(subresource: &str) -> Option<Self> {
        match subresource {
            "exec" => Some(Self::Exec),
            "attach" => Some(Self::Attach),
            "portforward" => Some(Self::PortForward),
            _ => None,
        }
    }
}

/// Which of a command's streams the client wants.
#[derive(Debug, Clone, Copy)]
struct Streams {
    has_stdin: bool,
    has_stdout: bool,
    has_stderr: bool,
    is_terminal: bool,
}

/// Agrees on a protocol and starts the session, which outlives the request.
pub(super) async fn respond(
    mut call: Call,
    method: &Method,
    kind: Kind,
) -> Result<Response<Body>, ApiError> {
    if !matches!(*method, Method::GET | Method::POST) {
        return Err(Status::method_not_allowed(call.info.resource, method.as_str()).into());
    }
    let target = target::find(&call, kind).await?;
    let required = || Status::bad_request("Upgrade request required");
    let upgrade = call.upgrade.take().ok_or_else(required)?;
    let Switch { protocol, response } = negotiate::negotiate(&call.headers, kind)?;
    let streams = Streams {
        has_stdin: call.query.is_set("stdin"),
        has_stdout: call.query.is_set("stdout"),
        has_stderr: call.query.is_set("stderr"),
        is_terminal: call.query.is_set("tty"),
    };
    if kind != Kind::PortForward && !(streams.has_stdin || streams.has_stdout || streams.has_stderr)
    {
        let what = "you must specify at least 1 of stdin, stdout, stderr";
        return Err(Status::bad_request(what).into());
    }
    let full = |_| Status::unavailable("too many streaming sessions on this server");
    let place = std::sync::Arc::clone(&call.context.session_places);
    let place = place.try_acquire_owned().map_err(full)?;
    let context = std::sync::Arc::clone(&call.context);
    let query = call.query;
    context.sessions.clone().spawn("streaming-session", |cancel| async move {
        let _place = place;
        let session = async {
            match upgrade.await {
                Ok(io) => {
                    let io = TokioIo::new(io);
                    match protocol {
                        Protocol::Channel { is_v5 } => {
                            let path = target.command_path(kind, &query);
                            remote_command::run(io, &context, &target, &path, is_v5).await;
                        }
                        Protocol::SpdyCommand => {
                            let path = target.command_path(kind, &query);
                            spdy_command::run(io, &context, &target, &path, streams).await;
                        }
                        Protocol::SpdyForward => {
                            port_forward::over_spdy(io, &context, &target).await;
                        }
                        Protocol::TunnelForward => {
                            port_forward::over_tunnel(io, &context, &target).await;
                        }
                        Protocol::ChannelForward => {
                            let ports = query.get_all("ports");
                            port_forward::over_channels(io, &context, &target, &ports).await;
                        }
                    }
                }
                Err(err) => tracing::debug!(%err, "a streaming client went away"),
            }
        };
        let _ = cancel.run_until_cancelled(session).await;
    });
    Ok(response)
}
