//! A Raft group's snapshots: frozen when the log asks for it, taken from the leader, shipped to followers.

use bytes::Bytes;
use holdfast_common::{LogIndex, Term};
use raft::SnapshotStatus;
use raft::eraftpb::MessageType;

use super::effects::{Effects, Freeze};
use super::{GroupCore, wire};
use crate::config::ELECTION_TICKS;
use crate::log::record::{Record, SnapshotMark};

/// Ticks a follower has to restore a snapshot it got; then it is sent another.
const RESTORE_TICKS: usize = 5 * ELECTION_TICKS;
/// And one tick more for each of these: 5 MiB a second at the default tick, which a slow disk checks and a table decodes even
/// while others do the same.
const RESTORE_TICK_BYTES: u64 = 512 << 10;

/// Ticks between two tries to write a snapshot that the log asks for: a large state is not written in vain all the time.
const FREEZE_PAUSE_TICKS: usize = 3 * ELECTION_TICKS;

/// Factor by which snapshots are written more often on a nearly full disk.
const TIGHT_SNAPSHOTS: u64 = 4;

impl<P, R> GroupCore<P, R> {
    /// Takes a snapshot message in whose file was verified and is durable as `mark.file`.
    pub(crate) fn snapshot_delivered(&mut self, from: u64, bytes: &Bytes, mark: SnapshotMark, out: &mut Effects<P, R>) {
        let message = wire::decode(from, self.options.node, bytes)
            .filter(|message| message.get_msg_type() == MessageType::MsgSnapshot)
            .filter(|message| {
                let metadata = message.get_snapshot().get_metadata();
                (LogIndex(metadata.index), Term(metadata.term)) == (mark.index, mark.term)
            });
        if let Some(message) = message {
            let _ = self.raw.step(message);
            if self.raw.snap().is_some_and(|snapshot| snapshot.get_metadata().index == mark.index.0) {
                out.remove(self.group, self.delivered.replace(mark));
                return;
            }
        }
        out.remove(self.group, Some(mark));
    }

    /// Takes note of how the sending of a snapshot to a follower ended. That it arrived is not that it is restored: the
    /// follower says so itself, and raft would send it again as long as it does not. Only if it never does is it tried
    /// again.
    pub(crate) fn snapshot_reported(&mut self, to: u64, ok: bool) {
        if ok {
            self.restoring.insert(to, restore_ticks(self.raw.store().mark().bytes));
        } else {
            self.restoring.remove(&to);
            self.raw.report_snapshot(to, SnapshotStatus::Failure);
        }
    }

    pub(super) fn await_restored(&mut self) {
        let raw = &mut self.raw;
        self.restoring.retain(|to, ticks| {
            *ticks -= 1;
            if *ticks == 0 {
                raw.report_snapshot(*to, SnapshotStatus::Failure);
            }
            *ticks > 0
        });
    }

    /// Length of its next snapshot, about: a state grows by what is in the log.
    pub(crate) fn snapshot_bytes(&self) -> u64 {
        self.raw.store().mark().bytes + self.raw.store().bytes_above_snapshot()
    }

    /// A frozen state is durable in its file, or was not written.
    pub(crate) fn snapshot_written(&mut self, mark: SnapshotMark, ok: bool, out: &mut Effects<P, R>) {
        self.freezing = false;
        if !ok {
            self.freeze_at_bytes = self.raw.store().bytes_above_snapshot() + self.options.snapshot_log_bytes;
            self.freeze_pause_ticks = FREEZE_PAUSE_TICKS;
        } else if mark.index <= self.raw.store().mark().index {
            out.remove(self.group, Some(mark));
        } else {
            out.records.push(Record::Group(self.group, self.raw.store().group_state(mark, false)));
            self.written = Some(mark);
        }
    }

    /// Writes this group's needs again, so that the log can let go of an old segment; a long log is snapshot instead.
    /// False if what it has in memory must not be written: then the log has to help itself.
    pub(crate) fn carry_forward(&mut self, bytes_max: u64, out: &mut Effects<P, R>) -> bool {
        if self.distrusted {
            return false;
        }
        let busy = self.written.is_some() || self.freezing;
        if busy && !self.is_stopped() {
            return true;
        }
        let store = self.raw.store();
        let long = store.bytes_above_snapshot() > bytes_max && self.applied > store.mark().index;
        if long && !self.is_stopped() {
            self.freeze_wanted = self.freeze_pause_ticks == 0;
            return true;
        }
        out.records.push(Record::Group(self.group, store.group_state(store.mark(), false)));
        let entries = store.live_entries();
        if !entries.is_empty() {
            out.records.push(Record::Carry(self.group, entries, true));
        }
        true
    }

    /// Lets the state be frozen if the log since the last snapshot is long, or has to become shorter.
    pub(super) fn freeze_if_due(&mut self, is_tight: bool, next_file: &mut u64, out: &mut Effects<P, R>) {
        let often = self.options.snapshot_log_bytes.max(self.raw.store().mark().bytes / 2);
        // Only a snapshot gives back what was deleted.
        let often = if is_tight { self.options.snapshot_log_bytes / TIGHT_SNAPSHOTS } else { often };
        let due = often.max(self.freeze_at_bytes);
        let wanted = std::mem::take(&mut self.freeze_wanted) || self.raw.store().bytes_above_snapshot() >= due;
        if wanted && !self.freezing && self.written.is_none() && self.applied > self.raw.store().mark().index {
            self.freeze(next_file, out);
        }
    }

    fn freeze(&mut self, next_file: &mut u64, out: &mut Effects<P, R>) {
        let Some(term) = self.raw.store().term_of(self.applied) else { return };
        self.freezing = true;
        let mark = SnapshotMark { index: self.applied, term, file: *next_file, bytes: 0 };
        *next_file += 1;
        let conf = self.raw.store().conf();
        let (voters, learners) = (conf.voters.clone(), conf.learners.clone());
        out.freezes.push(Freeze { group: self.group, mark, voters, learners });
    }
}

/// Ticks that a follower has to restore a snapshot of this length before it is sent again.
fn restore_ticks(bytes: u64) -> usize {
    RESTORE_TICKS + usize::try_from(bytes / RESTORE_TICK_BYTES).unwrap_or(usize::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_snapshot_is_not_sent_again_while_it_is_restored() {
        assert_eq!(restore_ticks(1000), RESTORE_TICKS);
        // 2 GiB: seven minutes at the default tick of 100 ms.
        assert!(restore_ticks(2 << 30) > 4000);
        assert!(restore_ticks(u64::MAX) > 1 << 40);
    }
}
