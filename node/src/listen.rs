//! The address a role serves at.

use std::io;
use std::net::{SocketAddr, TcpListener};

/// Reason why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {}", reason(source))]
pub struct ListenError {
    /// As it was configured.
    pub address: SocketAddr,
    /// Error of the system.
    pub source: io::Error,
}

fn reason(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::AddrInUse => "the port is in use".to_owned(),
        io::ErrorKind::AddrNotAvailable => "this host has no such address".to_owned(),
        _ => source.to_string(),
    }
}

/// An address taken before the server is there to take it: so that it is known for the registration, and a port in use is
/// found before anything is changed. Given up right before the server binds it.
#[derive(Debug)]
pub struct Reserved {
    address: SocketAddr,
    _listener: TcpListener,
}

impl Reserved {
    /// Takes an address; port 0 takes a free one.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn take(address: SocketAddr) -> Result<Self, ListenError> {
        let error = |source| ListenError { address, source };
        let listener = TcpListener::bind(address).map_err(error)?;
        Ok(Self { address: listener.local_addr().map_err(error)?, _listener: listener })
    }

    /// Address listened on, with the port that was chosen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_said_in_a_plain_sentence() {
        let first = Reserved::take("127.0.0.1:0".parse().unwrap()).unwrap();
        let error = Reserved::take(first.address()).unwrap_err();
        assert_eq!(error.to_string(), format!("cannot listen on {}: the port is in use", first.address()));
    }
}
