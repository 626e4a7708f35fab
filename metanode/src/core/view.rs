//! Grounds of the decisions about one table. The server takes a lock for every look, in the order attendance, table,
//! known; the stepped form borrows.

use super::attendance::Attendance;
use super::known::Known;
use crate::table::Table;
use holdfast_common::{Term, VolumeId};

/// A table as one replica sees it in one term that it leads or led.
pub(crate) trait View {
    fn volume(&self) -> VolumeId;

    /// The term in which this replica led when the view was taken.
    fn term(&self) -> Term;

    /// Monotonic milliseconds.
    fn now_ms(&self) -> u64;

    /// This node's clock as it may be stamped into an entry, nanoseconds since the epoch.
    fn stamp_ns(&self) -> i64;

    /// A look at the table. Of what is here only [`Self::known`] may be called meanwhile.
    fn table<T>(&self, look: impl FnOnce(&Table) -> T) -> T;

    /// A look at what the volume manager said. Nothing that is here may be called meanwhile.
    fn known<T>(&self, look: impl FnOnce(&Known) -> T) -> T;

    /// The attendance of this term. Sessions that nobody told it of are taken from the table.
    fn attendance<T>(&mut self, act: impl FnOnce(&mut Attendance) -> T) -> T;

    /// The attendance, brought up to date with the table's sessions.
    fn fresh_attendance<T>(&mut self, act: impl FnOnce(&mut Attendance) -> T) -> T;

    /// Bytes that the disks have left for data of this table, by the last heartbeat; while the volume manager was never
    /// heard, as many as its block groups could take.
    fn on_disks_bytes(&self, table: &Table) -> u64 {
        let volume = self.volume();
        let told = self.known(|known| known.assignment(volume).map(|assignment| assignment.available_bytes));
        told.unwrap_or_else(|| table.capacity().open_bytes)
    }
}

/// A view of parts that the caller owns.
pub(crate) struct Borrowed<'a> {
    pub(crate) volume: VolumeId,
    pub(crate) term: Term,
    pub(crate) now_ms: u64,
    pub(crate) stamp_ns: i64,
    pub(crate) table: &'a Table,
    pub(crate) known: &'a Known,
    pub(crate) attendance: &'a mut Attendance,
}

impl View for Borrowed<'_> {
    fn volume(&self) -> VolumeId {
        self.volume
    }

    fn term(&self) -> Term {
        self.term
    }

    fn now_ms(&self) -> u64 {
        self.now_ms
    }

    fn stamp_ns(&self) -> i64 {
        self.stamp_ns
    }

    fn table<T>(&self, look: impl FnOnce(&Table) -> T) -> T {
        look(self.table)
    }

    fn known<T>(&self, look: impl FnOnce(&Known) -> T) -> T {
        look(self.known)
    }

    fn attendance<T>(&mut self, act: impl FnOnce(&mut Attendance) -> T) -> T {
        if !self.attendance.is_of(self.term) {
            self.attendance.follow(self.term, &self.table.sessions(), self.now_ms);
        }
        act(self.attendance)
    }

    fn fresh_attendance<T>(&mut self, act: impl FnOnce(&mut Attendance) -> T) -> T {
        self.attendance.follow(self.term, &self.table.sessions(), self.now_ms);
        act(self.attendance)
    }
}
