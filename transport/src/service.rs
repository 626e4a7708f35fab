//! Services: what servers run.

use std::future::Future;

use bytes::Bytes;
use prost::Message;
use tokio::time::Instant;

use crate::error::Refusal;
use crate::outbox::Framed;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Call {
    /// Number of the method.
    pub method: u16,
    /// The encoded request message.
    pub header: Bytes,
    /// The raw body.
    pub body: Bytes,
    /// Time at which the caller stops waiting.
    pub deadline: Instant,
}

impl Call {
    /// Decodes the request message, and takes it away.
    ///
    /// # Errors
    /// [`Refusal::Malformed`].
    pub fn message<M: Message + Default>(&mut self) -> Result<M, Refusal> {
        M::decode(std::mem::take(&mut self.header))
            .map_err(|_| Refusal::Malformed("the request message does not decode"))
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The response message.
    pub(crate) frame: Framed,
    /// The raw body in pieces; they are written one after another without being copied together.
    pub(crate) body: Vec<Bytes>,
}

impl Reply {
    /// A response without a body.
    #[must_use]
    pub fn message(message: &impl Message) -> Self {
        Self::with_body(message, Vec::new())
    }

    /// A response with a body in pieces.
    #[must_use]
    pub fn with_body(message: &impl Message, body: Vec<Bytes>) -> Self {
        Self { frame: Framed::message(message), body }
    }

    /// A response that is encoded already, without a body.
    #[must_use]
    pub fn encoded(message: &[u8]) -> Self {
        Self { frame: Framed::encoded(message), body: Vec::new() }
    }
}

/// Work of a server with requests.
pub trait Service: Send + Sync + 'static {
    /// Answers one request; is not cancelled when the caller goes away. The first poll may run where the connection is read, and
    /// holds up what comes after: it must not block. The rest is a task of its own. A future that nothing can wake any more is
    /// dropped, and its request refused.
    fn call(&self, call: Call) -> impl Future<Output = Result<Reply, Refusal>> + Send;

    /// Takes a one-way frame, in order of arrival. Must not block: it runs where the connection is read.
    fn one_way(&self, method: u16, header: Bytes, body: Bytes) {
        let _ = (method, header, body);
    }
}
