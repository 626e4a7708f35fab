//! Framed RPC for Holdfast's hot paths (D7).
//!
//! One TCP connection carries many calls at once: frames of a fixed 32-byte header, a protobuf header and a raw body
//! (`frame`), after an exchange of hellos (`handshake`). [`Client`] keeps connections to its peers and reconnects by
//! itself; [`Server`] begins each request where it was read, or runs it as a task. Whatever a peer sends, the worst that
//! happens is a typed error and a closed connection.

mod begin;
mod client;
mod connection;
mod error;
pub mod frame;
pub mod handshake;
mod limits;
mod outbox;
mod server;
mod service;

pub use begin::begin;
pub use client::{Answer, Client};
pub use error::{Refusal, RpcError};
pub use handshake::{HandshakeError, Identity};
pub use limits::{BODY_BYTES_MAX, ClientLimits, HEADER_BYTES_MAX, ServerLimits};
pub use server::Server;
pub use service::{Call, Reply, Service};
