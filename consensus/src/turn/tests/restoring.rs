//! A follower that takes long to restore a large snapshot, tick by tick: it is sent the snapshot again when the time that its
//! length gives has passed, and not before.

use super::*;
use crate::config::HEARTBEAT_TICKS;
use crate::core::effects::SnapshotOut;

const GROUP: RaftGroupId = RaftGroupId(7);

/// Ticks from a report to when the snapshot is tried again: five seconds at the default tick of 100 ms, and one tick for each half MiB.
fn ticks_to_restore(bytes: u64) -> u64 {
    50 + bytes / (512 << 10)
}

/// One leads, two follows, and three came late: what it needs is no longer in the log. Its core is stepped like the others; when
/// its shell has restored a snapshot says the test.
struct Trio {
    cores: [Core; 3],
    waiting: [Vec<Input<u64, u64>>; 3],
    now: u64,
    mark: SnapshotMark,
    /// Ticks in a row in which the leader said nothing to three.
    silent_ticks: usize,
    /// Commands that three has applied.
    followed_count: usize,
}

impl Trio {
    /// The leader has just sent a snapshot of this length to three.
    fn with_snapshot(bytes: u64) -> (Self, SnapshotOut) {
        let forgetful = |node| CoreOptions { snapshot_log_bytes: 1, tail_bytes: 0, tail_entries: 0, ..options(node) };
        let cores = [1, 2, 3].map(|node| NodeCore::new(forgetful(node), BTreeMap::new(), 1));
        let (waiting, mark) = ([vec![], vec![], vec![]], SnapshotMark::default());
        let mut trio = Self { cores, waiting, now: 0, mark, silent_ticks: 0, followed_count: 0 };
        trio.cores[..2].iter_mut().for_each(|core| assert!(core.create(GROUP, &voters(3)).unwrap()));
        let freeze = (0..30).find_map(|_| trio.tick().freezes.pop()).expect("the log is longer than a byte");
        trio.mark = SnapshotMark { bytes, ..freeze.mark };
        trio.waiting[0].push(Input::SnapshotWritten { group: GROUP, mark: trio.mark, ok: true });
        trio.tick();
        assert!(trio.cores[2].create(GROUP, &voters(3)).unwrap());
        let sent = (0..10).find_map(|_| trio.tick().snapshots.pop()).expect("a follower far behind gets a snapshot");
        (trio, sent)
    }

    /// A tick of the leader and of three, and what follows of it. Effects of the leader's.
    fn tick(&mut self) -> Effects<u64, u64> {
        self.now += TICK_NS;
        self.waiting[0].push(Input::Tick);
        self.waiting[2].push(Input::Tick);
        let led = self.turn(0);
        self.silent_ticks = if led.messages.contains_key(&NodeId(3)) { 0 } else { self.silent_ticks + 1 };
        self.turn(1);
        let followed = self.turn(2);
        self.followed_count += followed.applies.iter().map(|apply| apply.commands.len()).sum::<usize>();
        led
    }

    /// A turn of one replica; what it says is with the others at once.
    fn turn(&mut self, index: usize) -> Effects<u64, u64> {
        let inputs = std::mem::take(&mut self.waiting[index]);
        let mut out = turn(&mut self.cores[index], self.now, inputs);
        let sender = NodeId(index as u64 + 1);
        for (to, messages) in &mut out.messages {
            let to = &mut self.waiting[usize::try_from(to.0).unwrap() - 1];
            let message =
                |m: crate::outbox::GroupMessage| Input::Message { from: sender, group: m.group, bytes: m.bytes };
            to.extend(messages.drain(..).map(message));
        }
        out
    }

    /// The file of a snapshot has arrived at three, or has not.
    fn report(&mut self, ok: bool) {
        self.waiting[0].push(Input::SnapshotReported { group: GROUP, to: NodeId(3), ok });
    }

    /// Three has restored it.
    fn restored(&mut self, sent: SnapshotOut) {
        let mark = SnapshotMark { file: 99, ..self.mark };
        let bytes = sent.message.bytes;
        self.waiting[2].push(Input::SnapshotDelivered { from: NodeId(1), group: GROUP, bytes, mark });
    }

    /// Lets ticks pass in which the group lives on and nothing is sent to three but heartbeats.
    fn pass(&mut self, ticks: u64) {
        for tick in 1..=ticks {
            let led = self.tick();
            assert!(led.snapshots.is_empty(), "it is sent again in tick {tick} of {ticks}");
            assert!(self.silent_ticks < HEARTBEAT_TICKS, "no heartbeat goes to the follower in tick {tick} of {ticks}");
            let (status, lease_until_ns) = self.cores[0].status(GROUP).unwrap();
            assert_eq!(status.role, Role::Leader, "in tick {tick} of {ticks}");
            assert!(lease_until_ns > self.now, "its lease has run out in tick {tick} of {ticks}");
            assert_ne!(
                role(&self.cores[2]),
                Role::Candidate,
                "the follower misses its leader in tick {tick} of {ticks}"
            );
        }
    }

    /// A snapshot that is sent within the next ticks.
    fn sent_again(&mut self) -> SnapshotOut {
        // Raft asks the follower once more, with its next heartbeat, before it sends.
        (0..2 * HEARTBEAT_TICKS).find_map(|_| self.tick().snapshots.pop()).expect("it is sent again")
    }
}

#[test]
fn a_snapshot_is_sent_again_when_the_time_of_its_length_has_passed_and_heartbeats_go_on_meanwhile() {
    for bytes in [4 << 10, 64 << 20, 2 << 30] {
        let (mut trio, _) = Trio::with_snapshot(bytes);
        // As long as the file is on its way, the time does not begin.
        trio.pass(2 * ticks_to_restore(0));
        for _ in 0..2 {
            trio.report(true);
            trio.pass(ticks_to_restore(bytes) - 1);
            let again = trio.sent_again();
            assert_eq!(again.file, trio.mark.file);
        }
    }
}

#[test]
fn a_large_snapshot_that_was_restored_late_is_not_sent_again_and_its_follower_follows_the_log() {
    const BYTES: u64 = 2 << 30;
    let (mut trio, sent) = Trio::with_snapshot(BYTES);
    trio.report(true);
    trio.pass(ticks_to_restore(BYTES) - 2);
    trio.restored(sent);
    trio.pass(3 * ticks_to_restore(BYTES));
    assert_eq!(trio.cores[2].status(GROUP).unwrap().0.applied, trio.mark.index);
    let command = Bytes::from_static(b"x");
    trio.waiting[0].push(Input::Propose { group: GROUP, command, ticket: 1, frees: false });
    trio.pass(10);
    assert_eq!(trio.followed_count, 1);
}

#[test]
fn a_large_snapshot_that_did_not_arrive_is_sent_again_at_once() {
    let (mut trio, _) = Trio::with_snapshot(2 << 30);
    trio.report(false);
    trio.sent_again();
}
