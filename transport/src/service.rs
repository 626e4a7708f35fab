//! What a server runs.

use std::future::Future;

use bytes::Bytes;
use prost::Message;
use tokio::time::Instant;

use crate::error::Refusal;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Call {
    /// Which method.
    pub method: u16,
    /// The encoded request message.
    pub header: Bytes,
    /// The raw body.
    pub body: Bytes,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

impl Call {
    /// Decodes the request message.
    ///
    /// # Errors
    /// [`Refusal::Malformed`].
    pub fn message<M: Message + Default>(&self) -> Result<M, Refusal> {
        M::decode(self.header.clone()).map_err(|_| Refusal::Malformed("the request message does not decode"))
    }
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// The encoded response message.
    pub header: Bytes,
    /// The raw body in pieces; they are written one after another without being copied together.
    pub body: Vec<Bytes>,
}

impl Reply {
    /// A response without a body.
    #[must_use]
    pub fn message(message: &impl Message) -> Self {
        Self::with_body(message, Vec::new())
    }

    /// A response with a body.
    #[must_use]
    pub fn with_body(message: &impl Message, body: Vec<Bytes>) -> Self {
        Self { header: message.encode_to_vec().into(), body }
    }
}

/// What a server does with requests.
pub trait Service: Send + Sync + 'static {
    /// Answers one request. Runs as a task of its own; is not cancelled when the caller goes away.
    fn call(&self, call: Call) -> impl Future<Output = Result<Reply, Refusal>> + Send;

    /// Takes a one-way frame, in order of arrival. Must not block: it runs where the connection is read.
    fn one_way(&self, method: u16, header: Bytes, body: Bytes) {
        let _ = (method, header, body);
    }
}
