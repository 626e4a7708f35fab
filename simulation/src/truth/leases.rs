//! Sessions that clients count upon, by true time: the table must keep each of them until its client knows better (R20).

use std::collections::BTreeMap;

use crate::clock::MS;

/// The session that a client counts upon, and the true time until which it does, whatever it hears or does not hear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) session: u64,
    pub(crate) until: u64,
}

/// The leases of all clients, as each counts its own.
#[derive(Default)]
pub(crate) struct Leases(BTreeMap<usize, Lease>);

impl Leases {
    /// A client counts upon a session from now on, or upon none. Says what is wrong with that.
    pub(crate) fn counts_on(
        &mut self,
        client: usize,
        lease: Option<Lease>,
        is_there: impl Fn(u64) -> bool,
    ) -> Result<(), String> {
        self.0.remove(&client);
        let Some(lease) = lease else { return Ok(()) };
        self.0.insert(client, lease);
        if is_there(lease.session) {
            return Ok(());
        }
        Err(format!("client {client} counts on session {}, which the table has ended", lease.session))
    }

    /// The table expires a session. Says who counts on it.
    pub(crate) fn expired(&self, session: u64, now: u64) -> Result<(), String> {
        match self.0.iter().find(|(_, lease)| lease.session == session && now < lease.until) {
            Some((client, lease)) => {
                let ms = (lease.until - now) / MS;
                Err(format!("session {session} was expired, and client {client} counts on it for another {ms} ms"))
            }
            None => Ok(()),
        }
    }

    /// A client's process has ended.
    pub(crate) fn ended(&mut self, client: usize) {
        self.0.remove(&client);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Lease = Lease { session: 3, until: 10 };

    fn lives(session: u64) -> bool {
        session == LEASE.session
    }

    #[test]
    fn a_session_that_a_client_counts_on_must_be_there_and_must_not_be_expired() {
        let mut leases = Leases::default();
        assert_eq!(leases.counts_on(0, Some(LEASE), lives), Ok(()));
        assert!(leases.expired(3, 9).is_err() && leases.expired(3, 10).is_ok() && leases.expired(4, 9).is_ok());
        assert!(leases.counts_on(1, Some(Lease { session: 4, ..LEASE }), lives).is_err());
    }

    #[test]
    fn who_knows_better_or_is_dead_counts_on_nothing() {
        let mut leases = Leases::default();
        assert_eq!(leases.counts_on(0, Some(LEASE), lives), Ok(()));
        assert_eq!(leases.counts_on(0, None, lives), Ok(()));
        assert_eq!(leases.expired(3, 9), Ok(()));
        assert_eq!(leases.counts_on(0, Some(LEASE), lives), Ok(()));
        leases.ended(0);
        assert_eq!(leases.expired(3, 9), Ok(()));
    }
}
