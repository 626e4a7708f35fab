//! The session's reservation of the volume's quota: EDQUOT is said at write(2), before data is taken in.
//!
//! Each dirty range is charged the 4 KiB pages it touches, which is never less than what it will map. The table holds
//! the session's reservation; it is raised in steps, and consumed by commits.

use crate::Error;
use crate::metadata::Metadata;
use holdfast_common::limits::PAGE_BYTES;
use holdfast_proto::meta::{Code, ReserveQuota, mutation};
use parking_lot::Mutex;
use std::sync::Arc;

/// Reserved beyond the present need, so that one Raft entry serves many writes.
const SLACK_BYTES: u64 = 64 << 20;

#[derive(Debug, Default)]
struct Account {
    /// What the table holds for the session.
    reserved_bytes: u64,
    /// What dirty and flushing data was charged.
    charged_bytes: u64,
    /// The table may hold something for the session.
    holds: bool,
    /// Charges that ended, ever: what commits consumed while a raise was under way.
    flushed_bytes: u64,
}

impl Account {
    /// A charge ends, and so does that part of the reservation.
    fn flush(&mut self, bytes: u64) {
        self.charged_bytes = self.charged_bytes.saturating_sub(bytes);
        self.reserved_bytes = self.reserved_bytes.saturating_sub(bytes);
        self.flushed_bytes += bytes;
    }

    /// The table answered a raise that was asked for when `flushed_before` was flushed. Whether commits that ended since
    /// came before or after it is not known; the careful guess is after.
    fn raise(&mut self, reserved_bytes: u64, flushed_before: u64) {
        self.reserved_bytes = reserved_bytes.saturating_sub(self.flushed_bytes - flushed_before);
        self.holds = true;
    }
}

/// The quota of one mount. Without a quota nothing is reserved.
pub(crate) struct Quota {
    metadata: Arc<Metadata>,
    limited: bool,
    account: Mutex<Account>,
    /// Held while the reservation is changed.
    changing: tokio::sync::Mutex<()>,
}

/// 4 KiB pages that a range touches, in bytes.
pub(crate) fn charge(offset: u64, length: u64) -> u64 {
    let page = u64::from(PAGE_BYTES);
    if length == 0 { 0 } else { (offset + length).div_ceil(page) * page - offset / page * page }
}

impl Quota {
    pub(crate) fn new(metadata: Arc<Metadata>, limited: bool) -> Self {
        Self { metadata, limited, account: Mutex::default(), changing: tokio::sync::Mutex::new(()) }
    }

    /// Charges a write before it is taken in, and answers the charge. `settle` is called once before the quota is called
    /// used up: it writes back what is dirty, which turns cautious charges into true ones, and answers how much the
    /// write will really map.
    pub(crate) async fn take(
        &self,
        offset: u64,
        length: u64,
        settle: impl AsyncFnOnce() -> Result<u64, Error>,
    ) -> Result<u64, Error> {
        if !self.limited {
            return Ok(0);
        }
        let wanted = charge(offset, length);
        if self.try_charge(wanted) {
            return Ok(wanted);
        }
        let _one = self.changing.lock().await;
        if self.try_charge(wanted) {
            return Ok(wanted);
        }
        match self.raise(wanted).await {
            Err(Error::Quota) => {}
            other => return other.map(|()| wanted),
        }
        let exact = settle().await?;
        if exact > 0 {
            self.raise(exact).await?;
        }
        Ok(exact)
    }

    fn try_charge(&self, wanted: u64) -> bool {
        let mut account = self.account.lock();
        let fits = account.charged_bytes + wanted <= account.reserved_bytes;
        if fits {
            account.charged_bytes += wanted;
        }
        fits
    }

    /// Reserves with slack, else just what is needed.
    async fn raise(&self, wanted: u64) -> Result<(), Error> {
        for slack in [SLACK_BYTES, 0] {
            let (target, flushed_before) = {
                let account = self.account.lock();
                (account.charged_bytes + wanted + slack, account.flushed_bytes)
            };
            match self.metadata.mutate(mutation::Op::ReserveQuota(ReserveQuota { bytes: target })).await {
                Ok(response) => {
                    let mut account = self.account.lock();
                    account.raise(response.reserved_bytes, flushed_before);
                    account.charged_bytes += wanted;
                    return Ok(());
                }
                Err(Error::Refused { code: Code::Quota, .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Err(Error::Quota)
    }

    /// Whether commits consume a reservation.
    pub(crate) fn is_limited(&self) -> bool {
        self.limited
    }

    /// A generation has ended: its charge is gone, and so is that part of the reservation.
    pub(crate) fn flushed(&self, charged_bytes: u64) {
        if self.limited {
            self.account.lock().flush(charged_bytes);
        }
    }

    /// Gives the reservation back when nothing is dirty: an idle mount keeps no quota from others. What the table holds
    /// may be more than this side knows of, as a commit and a raise can cross.
    pub(crate) async fn give_back_unused(&self) -> Result<(), Error> {
        let _one = self.changing.lock().await;
        {
            let mut account = self.account.lock();
            if !account.holds || account.charged_bytes > 0 {
                return Ok(());
            }
            // From here on writers have to raise it again, and so wait for this to end.
            account.reserved_bytes = 0;
            account.holds = false;
        }
        self.metadata.mutate(mutation::Op::ReserveQuota(ReserveQuota { bytes: 0 })).await.map(|_| ())
    }

    /// A new session holds nothing.
    pub(crate) fn reset(&self) {
        let mut account = self.account.lock();
        account.reserved_bytes = 0;
        account.holds = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Interleaving: a raise is asked for, a commit is applied behind it and answered before it.
    #[test]
    fn a_commit_that_overtakes_a_raise_leaves_no_reservation_that_is_not_there() {
        let mut account = Account { reserved_bytes: 100, charged_bytes: 100, ..Account::default() };
        let before = account.flushed_bytes;
        account.flush(60);
        account.raise(150, before);
        assert_eq!((account.charged_bytes, account.reserved_bytes), (40, 90));
    }

    #[test]
    fn a_range_is_charged_the_pages_it_touches() {
        assert_eq!(charge(0, 0), 0);
        assert_eq!(charge(0, 1), 4096);
        assert_eq!(charge(4095, 2), 8192);
        assert_eq!(charge(4096, 4096), 4096);
    }
}
