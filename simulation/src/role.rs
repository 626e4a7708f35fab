//! Every simulated process as the world sees it: packets and timers go in, wishes come out.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_common::{LogIndex, NodeId, Random, SessionId};
use holdfast_storage::SimulatedDisk;
use holdfast_storage::simulated::Counts;
use parking_lot::Mutex;

use crate::clock::Times;
use crate::packet::{Answer, Packet, Request};
use crate::truth::Truth;

/// Reason to drive a process that got no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// Raft's time passes.
    Tick,
    /// Work that nobody asked for is looked after.
    Look,
    /// The volume manager is told that this process lives.
    Beat,
    /// A sync that began returns.
    Synced,
    /// A job of a background thread is done.
    Job,
    /// Creates whose answers were held are answered.
    Creates,
    /// A sleep of a client's task ends.
    Sleep(u64),
}

/// Wish of a process to the world.
pub(crate) enum Wish {
    /// Sent and forgotten.
    Send { to: NodeId, packet: Packet },
    /// Answered under the ticket, by an error at the latest when the time is over.
    Call { ticket: u64, to: NodeId, request: Box<Request>, timeout: Duration },
    /// An answer to a call, after the time that the disk took.
    Reply { call: u64, answer: Box<Answer>, after_ns: u64 },
    /// The timer goes off once the process's clock has counted this.
    Arm { timer: Timer, after: Duration },
    /// A metanode's new log is whole, and its superblock may name it alone. The process ends.
    Recovered,
    /// The process cannot go on, and ends.
    Die(String),
    /// It ends with a sentence, as a command does that is to be run again.
    GiveUp(String),
}

/// Moment at which a process is driven, with what it is handed.
pub(crate) struct Moment<'a> {
    pub(crate) times: Times,
    pub(crate) random: &'a mut Random,
    pub(crate) truth: &'a Mutex<Truth>,
    pub(crate) disk: &'a SimulatedDisk,
    /// Counts of the disk before the process started.
    pub(crate) before: Counts,
}

pub(crate) trait Role {
    /// Takes a packet in, to be worked on when it is driven.
    fn packet(&mut self, times: Times, from: NodeId, packet: Packet);

    /// Takes a timer in.
    fn timer(&mut self, times: Times, timer: Timer);

    /// Does what waits.
    fn drive(&mut self, moment: Moment<'_>) -> Vec<Wish>;

    /// Whether it leads the volume's table.
    fn leads(&self) -> bool {
        false
    }

    /// Last applied index of its replica of the volume's table.
    fn applied(&self) -> LogIndex {
        LogIndex::ZERO
    }

    /// Last start of a node that it has registered for good.
    fn registered_start(&self, _: NodeId) -> Option<u64> {
        None
    }

    /// The session that it counts upon as a client, and for how long by its clock.
    fn lease(&self) -> Option<(SessionId, Duration)> {
        None
    }

    /// Count of tables it hosts beside the volume's.
    fn other_tables(&self) -> usize {
        0
    }

    /// The chunks of which its disk has shards; `None` if it has no disk for them, or one that failed.
    fn shards(&self) -> Option<BTreeSet<u64>> {
        None
    }
}
