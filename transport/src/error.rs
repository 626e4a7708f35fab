//! Failures of a call.

use std::io;
use std::net::SocketAddr;

use crate::frame::FrameError;
use crate::handshake::HandshakeError;

/// Reason why a server did not answer a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such method here.
    #[error("the server does not know the method")]
    UnknownMethod,
    /// The request does not decode; the text, which stays on the server's side, says what.
    #[error("malformed request: {0}")]
    Malformed(&'static str),
    /// A limit of the server is reached; nothing was done.
    #[error("the server is overloaded")]
    Overloaded,
    /// The deadline had passed.
    #[error("the deadline had passed when the server came to it")]
    Deadline,
    /// The server failed in a way of its own; its log says how.
    #[error("the server failed internally")]
    Internal,
}

impl Refusal {
    pub(crate) fn code(self) -> u16 {
        match self {
            Self::UnknownMethod => 1,
            Self::Malformed(_) => 2,
            Self::Overloaded => 3,
            Self::Deadline => 4,
            Self::Internal => 5,
        }
    }

    /// Codes of later versions read as `Internal`: the request was not answered, and that is all we know.
    pub(crate) fn from_code(code: u16) -> Self {
        match code {
            1 => Self::UnknownMethod,
            2 => Self::Malformed("the server could not read it"),
            3 => Self::Overloaded,
            4 => Self::Deadline,
            _ => Self::Internal,
        }
    }
}

/// Reason why a call has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the sentences name the fields")]
pub enum RpcError {
    /// There is no connection to the peer.
    #[error("cannot connect to {to}: {detail}")]
    Connect {
        /// The peer.
        to: SocketAddr,
        /// The kind of I/O error.
        kind: io::ErrorKind,
        /// Words of the system.
        detail: String,
    },
    /// The peer answered, and the two do not fit together.
    #[error("{to} and this process cannot talk: {reason}")]
    Handshake { to: SocketAddr, reason: HandshakeError },
    /// The connection broke after the request may have been sent.
    #[error("the connection broke before the answer came")]
    Disconnected,
    /// No answer in time.
    #[error("no answer within the deadline")]
    Deadline,
    /// All places for calls to this peer stayed taken until the deadline.
    #[error("too many calls to this peer are waiting")]
    QueueFull,
    /// The request is larger than a frame may be.
    #[error("a request of {header_bytes} + {body_bytes} bytes does not fit a frame")]
    TooLarge {
        /// Length of the encoded header.
        header_bytes: usize,
        /// Length of the body.
        body_bytes: usize,
    },
    /// The server refused it.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The peer sent bytes that are no frame; the connection is closed.
    #[error("malformed frame from the peer: {0}")]
    Frame(#[from] FrameError),
    /// The answer's header does not decode.
    #[error("the answer does not decode: {0}")]
    Malformed(&'static str),
}

impl RpcError {
    /// Whether the request certainly never left this process, so that repeating it elsewhere is no repetition.
    #[must_use]
    pub fn certainly_not_executed(&self) -> bool {
        match self {
            Self::Connect { .. } | Self::Handshake { .. } | Self::QueueFull | Self::TooLarge { .. } => true,
            Self::Disconnected | Self::Deadline | Self::Refused(_) | Self::Frame(_) | Self::Malformed(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_survives_the_wire() {
        for refusal in [Refusal::UnknownMethod, Refusal::Overloaded, Refusal::Deadline, Refusal::Internal] {
            assert_eq!(Refusal::from_code(refusal.code()), refusal);
        }
        assert!(matches!(Refusal::from_code(Refusal::Malformed("x").code()), Refusal::Malformed(_)));
    }
}
