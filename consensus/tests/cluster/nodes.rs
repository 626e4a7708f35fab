//! Nodes of one process, wired by an outbox that calls the others directly, over a map as state machine.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytes::Bytes;
use holdfast_common::{LogIndex, NodeId, RaftGroupId};
use holdfast_consensus::{
    Broken, Group, GroupMessage, Node, NodeConfig, Outbox, ProposeError, Role, Snapshot, StateMachine,
};
use parking_lot::RwLock;

/// Longest wait for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
pub(crate) const GROUP: RaftGroupId = RaftGroupId(7);

/// A map; a command is `key=value` and answers with the value before. `break` breaks it, `panic` panics.
#[derive(Default)]
pub(crate) struct Map {
    pub(crate) entries: Arc<BTreeMap<String, String>>,
    pub(crate) applied: LogIndex,
}

impl StateMachine for Map {
    fn apply(&mut self, index: LogIndex, command: &[u8]) -> Result<Bytes, Broken> {
        let text = std::str::from_utf8(command).map_err(|e| Broken(e.to_string()))?;
        assert_ne!(text, "panic", "told to");
        let (key, value) = text.split_once('=').ok_or_else(|| Broken(format!("no = in {text}")))?;
        assert!(index > self.applied, "{index} after {}", self.applied);
        self.applied = index;
        let old = Arc::make_mut(&mut self.entries).insert(key.to_owned(), value.to_owned());
        Ok(Bytes::from(old.unwrap_or_default()))
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        Box::new(Frozen(Arc::clone(&self.entries), self.applied))
    }

    fn restore(&mut self, from: &mut dyn Read) -> Result<(), Broken> {
        let mut text = String::new();
        from.read_to_string(&mut text).map_err(|e| Broken(e.to_string()))?;
        let mut lines = text.lines();
        self.applied = lines.next().and_then(|l| l.parse().ok()).map(LogIndex).ok_or(Broken("no index".into()))?;
        let entries = lines.map(|l| l.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())));
        self.entries = Arc::new(entries.collect::<Option<_>>().ok_or(Broken("no =".into()))?);
        Ok(())
    }
}

struct Frozen(Arc<BTreeMap<String, String>>, LogIndex);

impl Snapshot for Frozen {
    fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        writeln!(to, "{}", self.1)?;
        self.0.iter().try_for_each(|(k, v)| writeln!(to, "{k}={v}"))
    }
}

#[derive(Default)]
struct Wires {
    nodes: BTreeMap<NodeId, Weak<Node<Map>>>,
    cut: BTreeSet<NodeId>,
    /// Sending from this one panics, unless its driver's own thread does it.
    panics: Option<NodeId>,
}

struct Wire {
    from: NodeId,
    wires: Arc<RwLock<Wires>>,
}

impl Wire {
    fn peer(&self, to: NodeId) -> Option<Arc<Node<Map>>> {
        let wires = self.wires.read();
        let cut = wires.cut.contains(&to) || wires.cut.contains(&self.from);
        wires.nodes.get(&to).filter(|_| !cut).and_then(Weak::upgrade)
    }
}

impl Outbox for Wire {
    fn send(&self, to: NodeId, messages: Vec<GroupMessage>) {
        let visits = std::thread::current().name() != Some("consensus-drive");
        assert!(!visits || self.wires.read().panics != Some(self.from), "told to");
        if let Some(node) = self.peer(to) {
            node.deliver(self.from, messages);
        }
    }

    fn send_snapshot(&self, to: NodeId, message: GroupMessage, file: PathBuf) {
        let (from, to_node, sender) = (self.from, self.peer(to), self.peer(self.from));
        let group = message.group;
        std::thread::spawn(move || {
            let ok = to_node.is_some_and(|node| {
                let target = node.snapshot_directory().join(format!("incoming-{from}"));
                let copied = std::fs::copy(file, &target).is_ok();
                if copied {
                    node.deliver_snapshot(from, message, target);
                }
                copied
            });
            if let Some(sender) = sender {
                sender.report_snapshot(group, to, ok);
            }
        });
    }
}

/// Three nodes at most, each in a directory of its own.
pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    wires: Arc<RwLock<Wires>>,
    outboxes: BTreeMap<NodeId, Weak<Wire>>,
    pub(crate) nodes: BTreeMap<NodeId, Arc<Node<Map>>>,
    pub(crate) tune: fn(&mut NodeConfig),
    pub(crate) voters: Vec<NodeId>,
}

impl Cluster {
    pub(crate) fn start(count: u64, tune: fn(&mut NodeConfig)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let voters: Vec<NodeId> = (1..=count).map(NodeId).collect();
        let (wires, outboxes, nodes) = (Arc::default(), BTreeMap::new(), BTreeMap::new());
        let mut cluster = Self { directory, wires, outboxes, nodes, tune, voters: voters.clone() };
        for id in &voters {
            cluster.open(*id);
        }
        for node in cluster.nodes.values() {
            node.create_group(GROUP, &voters).unwrap();
        }
        cluster
    }

    pub(crate) fn path(&self, id: NodeId) -> PathBuf {
        self.directory.path().join(id.to_string())
    }

    pub(crate) fn open(&mut self, id: NodeId) {
        let mut config = NodeConfig { segment_bytes: 256 << 10, ..NodeConfig::new(id, self.path(id)) };
        config.tick = Duration::from_millis(20);
        (self.tune)(&mut config);
        let wire = Arc::new(Wire { from: id, wires: Arc::clone(&self.wires) });
        self.outboxes.insert(id, Arc::downgrade(&wire));
        let node = Arc::new(Node::open(config, wire, |_| Map::default()).unwrap());
        self.wires.write().nodes.insert(id, Arc::downgrade(&node));
        self.nodes.insert(id, node);
    }

    /// Stops a node without any farewell to the others.
    pub(crate) fn kill(&mut self, id: NodeId) {
        self.wires.write().nodes.remove(&id);
        self.nodes.remove(&id).unwrap().shutdown();
    }

    /// Whether anything of a node is left: its driver owns its outbox.
    pub(crate) fn is_gone(&self, id: NodeId) -> bool {
        self.outboxes[&id].strong_count() == 0
    }

    /// Makes the next visitor of the node's driver panic when he sends.
    pub(crate) fn panic_visitors(&self, of: NodeId) {
        self.wires.write().panics = Some(of);
    }

    pub(crate) fn cut(&self, id: NodeId) {
        self.wires.write().cut.insert(id);
    }

    pub(crate) fn heal(&self) {
        self.wires.write().cut.clear();
    }

    pub(crate) fn group(&self, id: NodeId) -> Group<Map> {
        self.nodes[&id].group(GROUP).unwrap()
    }

    /// The node that leads and is not cut off, once there is one.
    pub(crate) async fn leader(&self) -> NodeId {
        let leads =
            |id: &&NodeId| !self.wires.read().cut.contains(id) && self.group(**id).status().role == Role::Leader;
        until("a leader", || self.nodes.keys().find(leads).copied()).await
    }

    /// Proposes to whoever leads until it is answered.
    pub(crate) async fn put(&self, command: &str) -> Bytes {
        let start = Instant::now();
        loop {
            let leader = self.leader().await;
            match self.group(leader).propose(Bytes::from(command.to_owned())).await {
                Ok(answer) => return answer,
                Err(ProposeError::TooLarge) => panic!("too large"),
                Err(error) => assert!(start.elapsed() < DEADLINE, "{error}"),
            }
        }
    }

    /// Reads linearizably from whoever leads.
    pub(crate) async fn get(&self, key: &str) -> Option<String> {
        let start = Instant::now();
        loop {
            let group = self.group(self.leader().await);
            match group.read_barrier().await {
                Ok(()) => return group.state().read().entries.get(key).cloned(),
                Err(error) => assert!(start.elapsed() < DEADLINE, "{error}"),
            }
        }
    }
}

/// Polls until there is something.
pub(crate) async fn until<T>(what: &str, mut poll: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = poll() {
            return found;
        }
        assert!(start.elapsed() < DEADLINE, "no {what} within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
