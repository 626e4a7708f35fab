//! Snapshots of several groups of one node, with real files and threads.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_common::{LogIndex, NodeId, RaftGroupId};
use holdfast_consensus::{Broken, GroupMessage, Node, NodeConfig, Outbox, Snapshot, StateMachine};

const DEADLINE: Duration = Duration::from_secs(60);
const LARGE: RaftGroupId = RaftGroupId(1);
const SMALL: RaftGroupId = RaftGroupId(2);

/// Snapshots of a group: how many began, and a gate that each waits at until the sender of its other end is gone.
#[derive(Clone, Default)]
struct Writing {
    began_count: Arc<AtomicU64>,
    gate: Option<Arc<Mutex<mpsc::Receiver<()>>>>,
}

/// Counts commands.
struct Counter {
    count: u64,
    writing: Writing,
}

impl StateMachine for Counter {
    fn apply(&mut self, _: LogIndex, _: &[u8]) -> Result<Bytes, Broken> {
        self.count += 1;
        Ok(Bytes::new())
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        Box::new(Frozen { count: self.count, writing: self.writing.clone() })
    }

    fn restore(&mut self, from: &mut dyn Read) -> Result<(), Broken> {
        let mut bytes = [0; 8];
        from.read_exact(&mut bytes).map_err(|error| Broken(error.to_string()))?;
        self.count = u64::from_le_bytes(bytes);
        Ok(())
    }
}

struct Frozen {
    count: u64,
    writing: Writing,
}

impl Snapshot for Frozen {
    fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        self.writing.began_count.fetch_add(1, Ordering::SeqCst);
        if let Some(gate) = &self.writing.gate {
            // An error says that the gate is open.
            let _ = gate.lock().unwrap().recv();
        }
        to.write_all(&self.count.to_le_bytes())
    }
}

/// The only voter has nobody to write to.
struct NoPeers;

impl Outbox for NoPeers {
    fn send(&self, _to: NodeId, _messages: Vec<GroupMessage>) {}
    fn send_snapshot(&self, _to: NodeId, _message: GroupMessage, _file: PathBuf) {}
}

fn open(directory: PathBuf, large: Writing, small: Writing) -> Node<Counter> {
    let mut config = NodeConfig { segment_bytes: 256 << 10, ..NodeConfig::new(NodeId(1), directory) };
    (config.tick, config.snapshot_log_bytes, config.tail_entries) = (Duration::from_millis(20), 16 << 10, 8);
    let make = move |group| Counter { count: 0, writing: if group == LARGE { large.clone() } else { small.clone() } };
    let node = Node::open(config, Arc::new(NoPeers), make).unwrap();
    [LARGE, SMALL].iter().for_each(|group| node.create_group(*group, &[NodeId(1)]).unwrap());
    node
}

/// Proposes to a group until `done`; says how many commands were answered.
async fn propose_until(node: &Node<Counter>, group: RaftGroupId, what: &str, done: impl Fn() -> bool) -> u64 {
    let (started, mut answered) = (Instant::now(), 0);
    let handle = node.group(group).unwrap();
    while !done() {
        assert!(started.elapsed() < DEADLINE, "no {what} within {DEADLINE:?}");
        // Before it leads, and while much waits, it refuses.
        answered += u64::from(handle.propose(Bytes::from(vec![7; 2 << 10])).await.is_ok());
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_takes_long_holds_up_neither_those_of_other_groups_nor_its_own_group() {
    let temporary = tempfile::tempdir().unwrap();
    let (large, small) = (Writing::default(), Writing::default());
    let node;
    // Behind the node: a test that fails opens the gate before the node waits for its threads.
    let (open_gate, gate) = mpsc::channel::<()>();
    let gated = Writing { gate: Some(Arc::new(Mutex::new(gate))), ..large.clone() };
    node = open(temporary.path().to_owned(), gated, small.clone());
    let began = |writing: &Writing| writing.began_count.load(Ordering::SeqCst);
    let mut larges = propose_until(&node, LARGE, "large snapshot", || began(&large) == 1).await;
    // The next one of a group begins only when the one before is current.
    let smalls = propose_until(&node, SMALL, "third small snapshot", || began(&small) == 3).await;
    assert_eq!(began(&large), 1);
    let handle = node.group(LARGE).unwrap();
    handle.propose(Bytes::from_static(b"on")).await.unwrap();
    larges += 1;
    drop(open_gate);
    larges += propose_until(&node, LARGE, "second large snapshot", || began(&large) == 2).await;
    node.shutdown();
    drop(node);
    let node = open(temporary.path().to_owned(), large, small);
    for (group, expected) in [(LARGE, larges), (SMALL, smalls)] {
        let handle = node.group(group).unwrap();
        let started = Instant::now();
        while handle.read_barrier().await.is_err() {
            assert!(started.elapsed() < DEADLINE, "nobody leads");
        }
        assert_eq!(handle.state().read().count, expected);
    }
}
