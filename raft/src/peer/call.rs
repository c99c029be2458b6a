//! The calling side: one request, one answer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::envelope::{self, Header, Message, kind};
use crate::peer::wire::{AddressV1, RefusalV1, Request};
use crate::{Member, Transport, TransportError};

/// Why a call brought no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// Nothing was sent.
    #[error("{0}")]
    Unreachable(String),
    /// The peer may have acted.
    #[error("{0}")]
    Lost(String),
    /// The peer did not act.
    #[error("refused: {0}")]
    Refused(RefusalV1),
}

/// Calls the other members in the name of this one.
pub(crate) struct Peers {
    transport: Arc<dyn Transport>,
    me: Member,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").field("me", &self.me).finish_non_exhaustive()
    }
}

impl Peers {
    pub(crate) fn new(transport: Arc<dyn Transport>, me: Member) -> Self {
        Self { transport, me }
    }

    /// Sends a request to a member and waits for its answer.
    pub(crate) async fn call<R: Request>(
        &self,
        to: &Member,
        request: &R,
        deadline: Duration,
    ) -> Result<R::Reply, CallError> {
        let address = AddressV1 {
            from: self.me.id,
            from_store: self.me.store_uuid,
            to: to.id,
            to_store: to.store_uuid,
        };
        let frame = envelope::encode_as(R::KIND, R::VERSION, (&address, request))
            .map_err(|e| CallError::Unreachable(e.to_string()))?;
        let call = self.transport.call(to, frame, deadline);
        // The transport keeps the deadline; a broken one must not hang Raft.
        let answer = match tokio::time::timeout(deadline.saturating_mul(2), call).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(e @ TransportError::Unreachable { .. })) => {
                return Err(CallError::Unreachable(e.to_string()));
            }
            Ok(Err(e)) => return Err(CallError::Lost(e.to_string())),
            Err(_) => return Err(CallError::Lost("the transport missed its deadline".to_owned())),
        };
        let lost = |e: envelope::EnvelopeError| CallError::Lost(format!("bad answer: {e}"));
        if Header::parse(&answer).map_err(lost)?.kind == kind::REFUSAL {
            return Err(CallError::Refused(envelope::decode(&answer).map_err(lost)?));
        }
        envelope::decode::<R::Reply>(&answer).map_err(lost)
    }
}

/// An answer as bytes; one that cannot be encoded becomes a refusal.
pub(crate) fn answer<M: Message>(message: &M) -> bytes::Bytes {
    envelope::encode(message).unwrap_or_else(|e| {
        tracing::warn!(err = %e, "cannot encode an answer");
        let refusal = RefusalV1::Malformed("the answer is too large".to_owned());
        envelope::encode(&refusal).unwrap_or_default()
    })
}
