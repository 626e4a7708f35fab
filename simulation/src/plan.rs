//! Plan of a run's faults, as its seed decides.

use holdfast_common::{NodeId, Random};

use crate::clock::{MS, SECOND};
use crate::machines::{DATANODES, METANODES};

/// Faults of a run, by its seed.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// Whether there are faults at all.
    pub(crate) on: bool,
    /// Duration of the time of faults.
    pub(crate) faults_ns: u64,
    /// Packets lost all the time.
    pub(crate) loss_percent: u64,
    /// Time between faults, at most.
    pub(crate) interval_ns: u64,
    /// Once in this many turns a process dies after some of its messages.
    dies_once_in: u64,
    /// Clients are cut off or stopped for longer than their lease.
    pub(crate) long: bool,
    /// Time at which a client goes.
    pub(crate) away_at: Option<u64>,
    /// The one datanode whose disk fails: parity is there for as many.
    pub(crate) bad_disk: Option<NodeId>,
    /// The one metanode whose syncs fail, which ends its process each time.
    pub(crate) failing_log: Option<NodeId>,
    /// That disk alters and loses what it holds before; else its syncs fail, and until then it keeps what it promised.
    rots: bool,
}

impl Plan {
    /// The plan of a seed.
    pub(crate) fn new(random: &mut Random) -> Self {
        let long = random.one_in(4);
        Self {
            on: false,
            faults_ns: if long { 60 * SECOND } else { (10 + random.below(15)) * SECOND },
            loss_percent: random.below(3) * 2,
            interval_ns: (1 + random.below(4)) * SECOND,
            dies_once_in: [0, 2000, 400][random.index(3)],
            long,
            away_at: None,
            bad_disk: random.chance(60).then(|| DATANODES[random.index(DATANODES.len())]),
            rots: random.chance(60),
            failing_log: random.chance(40).then(|| METANODES[random.index(METANODES.len())]),
        }
    }

    /// After how many of its wishes a process dies, if it does.
    pub(crate) fn dies_in_the_middle(&self, random: &mut Random, wishes: usize) -> Option<usize> {
        let dies = self.on && self.dies_once_in > 0 && wishes > 1 && random.one_in(self.dies_once_in);
        dies.then(|| random.index(wishes))
    }

    pub(crate) fn restart_delay(&self, random: &mut Random) -> u64 {
        let most = if self.on { 6 * SECOND } else { SECOND };
        random.below(most) + 100 * MS
    }

    /// The machine whose disk alters and loses what it holds.
    pub(crate) fn rotting(&self) -> Option<NodeId> {
        self.bad_disk.filter(|_| self.rots)
    }

    /// Whether a node's disk may be lost for good.
    pub(crate) fn is_lost(&self, node: NodeId) -> bool {
        self.bad_disk == Some(node)
    }
}
