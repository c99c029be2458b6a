//! Talking to the other members: frames, the calling side, the answering side.
//!
//! Data in: openraft's requests and forwarded calls. Data out: one frame for each through the
//! [`Transport`](crate::Transport), and one answer frame back.
//!
//! # Invariants
//!
//! - Every request says from whom to whom, with both store ids: a wiped or cloned disk neither
//!   asks nor answers as the member it was.
//! - A member that was removed is told so and gets nothing else.
//! - An answer is always an envelope; a request that was not served gets a refusal.
//! - A leader that no quorum answers is quiet now and then, so that the others can elect.
//! - A forwarded call is served by the leader or refused, never passed on again.

mod call;
mod gate;
mod network;
mod receive;
mod serve;
mod wire;

pub(crate) use call::{CallError, Peers};
pub(crate) use gate::Gate;
pub(crate) use network::Network;
pub(crate) use receive::Incoming;
pub(crate) use serve::serve;
pub(crate) use wire::{
    AdminReplyV1, AdminV1, ForwardTxnReplyV1, ForwardTxnV1, ReadIndexReplyV1, ReadIndexV1,
};
