//! Plan of a run's faults, as its seed decides.

use holdfast_common::{NodeId, Random};
use holdfast_storage::simulated::Faults;

use crate::clock::{MS, SECOND};
use crate::machines::{DATANODES, METANODES, VOLMGR};

/// Percent of runs in which a log is lost, and as many in which a copy is started.
const MISHAP_PERCENT: u64 = 20;
/// Percent of runs in which disks become full, and of the machines of these runs.
const FULL_PERCENT: u64 = 40;

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
    /// What befalls a metanode's whole disk.
    pub(crate) mishap: Option<Mishap>,
    /// No other fault before.
    pub(crate) quiet_until: u64,
    /// Machines whose disks others fill up, and empty again.
    pub(crate) full_disks: Vec<NodeId>,
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
            // As with leaders: no session would ever be expired.
            mishap: Mishap::draw(random).filter(|_| !long),
            quiet_until: 0,
            full_disks: draw_full_disks(random),
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

    /// The machine whose disk fails, and keeps what it promised until then.
    pub(crate) fn failing(&self) -> Option<NodeId> {
        self.bad_disk.filter(|_| !self.rots)
    }

    /// What goes wrong by chance on a node's disk.
    pub(crate) fn disk_faults(&self, node: NodeId) -> Faults {
        let bad = self.bad_disk == Some(node);
        let rots = self.rotting() == Some(node);
        let fails = bad || self.failing_log == Some(node);
        Faults {
            slow_ppm: 2000,
            slow_ns_max: 500 * MS,
            operation_ns: 20_000,
            bit_rot_ppm: if rots { 3000 } else { 0 },
            phantom_write_ppm: if rots { 1000 } else { 0 },
            misdirected_write_ppm: if rots { 1000 } else { 0 },
            read_error_ppm: if rots { 1000 } else { 0 },
            write_error_ppm: if fails { 300 } else { 0 },
            sync_error_ppm: if rots { 500 } else { u64::from(fails) * 2000 },
            no_space_ppm: if self.full_disks.contains(&node) { 2000 } else { 0 },
            no_descriptor_ppm: 2000,
            ..Faults::default()
        }
    }

    /// Whether a node's disk may be lost for good.
    pub(crate) fn is_lost(&self, node: NodeId) -> bool {
        self.bad_disk == Some(node)
    }
}

/// Machines whose disks become full, of every kind that has one.
fn draw_full_disks(random: &mut Random) -> Vec<NodeId> {
    if !random.chance(FULL_PERCENT) {
        return Vec::new();
    }
    let all = METANODES.into_iter().chain(DATANODES).chain([VOLMGR]);
    all.filter(|_| random.chance(FULL_PERCENT)).collect()
}

/// What happens to a metanode.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mishap {
    /// Its disk is gone.
    LogLost,
    /// An older image of its directory is started.
    OlderCopy,
}

/// A part of a mishap, whose time has come.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    LoseLog(NodeId),
    /// The leader is parted from the other metanodes, of which one is to be replaced.
    Part(NodeId),
    /// The copy takes its place, if the former leader is still in the life in which it heard of it.
    Replace {
        replaced: NodeId,
        hearer: NodeId,
        life: u64,
    },
    Withdraw,
}

impl Mishap {
    fn draw(random: &mut Random) -> Option<Self> {
        match random.below(100) {
            drawn if drawn < MISHAP_PERCENT => Some(Self::LogLost),
            drawn if drawn < 2 * MISHAP_PERCENT => Some(Self::OlderCopy),
            _ => None,
        }
    }
}

/// A part of a fault that comes later.
#[derive(Clone, Debug)]
pub(crate) enum Later {
    /// These cannot talk for a while; `refused` says that who calls learns it.
    Cut { pairs: Vec<(NodeId, NodeId)>, duration: u64, refused: bool },
    /// A process dies, and starts again soon.
    Die { node: NodeId, restart_delay: u64 },
    /// Something befalls a metanode's whole disk.
    Mishap(Step),
    /// A client that is silent for long.
    Silence(Part),
    /// Something befalls a node whose syncs fail.
    Blow(NodeId, Blow),
    /// The space of a machine's disk changes.
    Space(NodeId, Space),
}

/// Space of a disk, as others leave it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Space {
    /// Others take what is free, or nearly all of it.
    Taken,
    /// They give it back, or a part of it.
    GivenBack,
}

/// A part of what befalls a node whose syncs fail.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Blow {
    /// Its next sync fails.
    Sync,
    /// Its machine loses its power.
    Power,
}

/// A part of a silence that comes later.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Part {
    /// It is known when the client was heard last.
    Settled(usize),
    /// The leader will find it silent.
    Due(usize),
    /// It speaks again.
    Speak(usize),
}
