//! A cluster that the client cannot tell from a real one but by its speed: the real metadata table behind a leader that
//! changes, and disks that are maps. Requests are lost before and after they were executed, delayed, refused. In virtual
//! time, and the same for the same seed.

use crate::amiss::Amiss;
use bytes::{Bytes, BytesMut};
use holdfast_client::network::{Call, Network};
use holdfast_common::{ChunkId, FileOffset, GroupId, InodeId, Random, SessionId};
use holdfast_metanode::{COMMAND_VERSION, FEATURE_LEVEL, Table, is_leader_only, refusal};
use holdfast_proto::control::{Endpoint, Volume, VolumeState};
use holdfast_proto::data::{
    DiskGrant, PutShardRequest, PutShardResponse, ReadShardsRequest, ReadShardsResponse, ReserveSpaceRequest,
    ReserveSpaceResponse, ShardData, ShardHeader, Status,
};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    AddGroups, BlockGroup, Code, Configure, ExpireSessions, ForgetChunks, GroupSlot, MutateRequest, MutateResponse,
    Mutation, NodeAddress, RaiseFeatureLevel, RaiseFloor, ReadRequest, ReadResponse, VacateSlot, read_request,
};
use holdfast_proto::record::TableCommand;
use holdfast_transport::RpcError;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, Once};
use std::task::Waker;
use std::time::Duration;
use tokio::time::{Instant, sleep};

pub(crate) const VOLUME: u64 = 7;
pub(crate) const CODE: (u32, u32) = (2, 1);
const METANODES: u64 = 3;
const DATANODES: u64 = 4;
const PAGE: u32 = 4096;

/// How often what goes wrong, in percent of requests.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Faults {
    pub(crate) lost: u64,
    pub(crate) unanswered: u64,
    pub(crate) leader_changes: u64,
    pub(crate) puts_fail: u64,
    pub(crate) puts_late: u64,
    pub(crate) reads_fail: u64,
    pub(crate) damaged: u64,
}

pub(crate) struct State {
    pub(crate) table: Table,
    pub(crate) random: Random,
    pub(crate) faults: Faults,
    pub(crate) leader: u64,
    /// No metanode answers.
    pub(crate) headless: bool,
    /// Disks that do not answer.
    pub(crate) silent: Vec<u64>,
    /// Disks that the volume manager thinks dead.
    pub(crate) thought_dead: Vec<u64>,
    pub(crate) free_bytes: u64,
    /// Disks that refuse every shard for want of space, whatever they promised.
    pub(crate) full: Vec<u64>,
    pub(crate) floor: u64,
    /// Fault of the answers to reads, and the disks that give them.
    pub(crate) amiss: Option<(Amiss, Vec<u64>)>,
    /// Puts below it.
    pub(crate) refused_puts: u64,
    pub(crate) executed: u64,
    pub(crate) shards: BTreeMap<(u64, u64, u32), (ShardHeader, Bytes)>,
    started: Instant,
}

/// The cluster; clones are the same one.
#[derive(Clone)]
pub(crate) struct Cluster(Arc<Mutex<State>>);

fn metanode(node: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], u16::try_from(100 + node).unwrap()))
}

fn datanode(disk: u64) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], u16::try_from(200 + disk).unwrap()))
}

impl Cluster {
    pub(crate) fn new(seed: u64, quota_bytes: u64) -> Self {
        let state = State {
            table: Table::new(),
            random: Random::new(seed),
            faults: Faults::default(),
            leader: 1,
            headless: false,
            silent: Vec::new(),
            thought_dead: Vec::new(),
            free_bytes: 1 << 40,
            full: Vec::new(),
            floor: 0,
            amiss: None,
            refused_puts: 0,
            executed: 0,
            shards: BTreeMap::new(),
            started: Instant::now(),
        };
        let cluster = Self(Arc::new(Mutex::new(state)));
        let (data_shards, parity_shards) = CODE;
        cluster.command(Op::Configure(Configure {
            volume: VOLUME,
            incarnation: 1,
            data_shards,
            parity_shards,
            quota_bytes,
            name: "model".into(),
        }));
        cluster.command(Op::RaiseFeatureLevel(RaiseFeatureLevel { level: FEATURE_LEVEL }));
        let slots = |first: u64| {
            (0..3).map(move |i| (first + i) % DATANODES + 1).map(|disk| GroupSlot { disk, node: 10 + disk })
        };
        let groups = (0..2).map(|group| BlockGroup {
            group: group + 1,
            epoch: 1,
            slots: slots(group).collect(),
            capacity_bytes: 32 << 30,
            ..BlockGroup::default()
        });
        cluster.command(Op::AddGroups(AddGroups { groups: groups.collect() }));
        cluster
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// What the volume manager says of the volume.
    pub(crate) fn volume(&self) -> Volume {
        let metanodes = (1..=METANODES)
            .map(|node| Endpoint { node, address: metanode(node).to_string(), alive: true, ..Default::default() })
            .collect();
        let quota_bytes = self.state().table.configuration().map_or(0, |c| c.quota_bytes);
        Volume {
            volume: VOLUME,
            incarnation: 1,
            name: "model".into(),
            state: VolumeState::Active.into(),
            data_shards: CODE.0,
            parity_shards: CODE.1,
            quota_bytes,
            metanodes,
            cluster: "0".repeat(32),
            ..Volume::default()
        }
    }

    /// An entry that a leader proposes by itself.
    pub(crate) fn command(&self, op: Op) -> MutateResponse {
        self.state().apply(op, 0, 0, 0)
    }

    pub(crate) fn expire(&self, session: u64) {
        self.command(Op::ExpireSessions(ExpireSessions { sessions: vec![session] }));
    }

    pub(crate) fn sessions(&self) -> Vec<u64> {
        self.state().table.sessions().iter().map(|session| session.0).collect()
    }

    /// Raises the floor to where chunk ids are now: whatever was reserved before must be left.
    pub(crate) fn raise_floor(&self, floor: u64) {
        self.command(Op::RaiseFloor(RaiseFloor { floor }));
        self.state().floor = floor;
    }

    pub(crate) fn vacate(&self, group: u64, slot: u32) {
        let epoch = self.state().table.group(GroupId(group)).map_or(0, |group| group.epoch);
        self.command(Op::VacateSlot(VacateSlot { group, epoch, slot }));
    }

    /// Deletes what no file needs any more, at once: only while nobody reads.
    pub(crate) fn sweep(&self) {
        let mut state = self.state();
        let freed = state.table.freed_chunks(i64::MAX, (i64::MIN, ChunkId(0)), usize::MAX);
        let chunks: Vec<u64> = freed.iter().map(|chunk| chunk.record.chunk).collect();
        for chunk in &chunks {
            for (disk, shard) in (1..=DATANODES).flat_map(|disk| (0..CODE.0 + CODE.1).map(move |shard| (disk, shard))) {
                state.shards.remove(&(disk, *chunk, shard));
            }
        }
        state.apply(Op::ForgetChunks(ForgetChunks { chunks, disks: Vec::new() }), 0, 0, 0);
    }

    /// Executes after a delay, or not; answers after a delay, or not.
    fn call<T: Send + 'static>(
        &self,
        timeout: Duration,
        lost: impl FnOnce(&mut State) -> (bool, bool, u64),
        execute: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Call<T> {
        let cluster = self.clone();
        let (lost, unanswered, delay_us) = lost(&mut self.state());
        Box::pin(async move {
            sleep(Duration::from_micros(delay_us / 2)).await;
            let begun = Instant::now();
            if lost {
                sleep(timeout).await;
                return Err(RpcError::Deadline.into());
            }
            let answer = execute(&mut cluster.state());
            sleep(Duration::from_micros(delay_us / 2)).await;
            if unanswered {
                sleep(timeout.saturating_sub(begun.elapsed())).await;
                return Err(RpcError::Deadline.into());
            }
            Ok(answer)
        })
    }

    fn ask_leader<T: Send + 'static>(
        &self,
        to: SocketAddr,
        timeout: Duration,
        elsewhere: impl FnOnce(String) -> T + Send + 'static,
        execute: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Call<T> {
        let fate = |state: &mut State| {
            let faults = state.faults;
            if state.random.chance(faults.leader_changes) {
                state.leader = state.random.below(METANODES) + 1;
            }
            let lost = state.random.chance(faults.lost) || state.headless;
            (lost, state.random.chance(faults.unanswered), state.random.below(3000) + 20)
        };
        self.call(timeout, fate, move |state| {
            let leader = metanode(state.leader);
            if to == leader { execute(state) } else { elsewhere(leader.to_string()) }
        })
    }
}

impl State {
    fn apply(&mut self, op: Op, session: u64, sequence: u64, acknowledged_below: u64) -> MutateResponse {
        self.executed += 1;
        let time_ns = 1_000_000_000 + i64::try_from(self.started.elapsed().as_nanos()).unwrap();
        let command = TableCommand {
            version: COMMAND_VERSION,
            time_ns,
            session,
            sequence,
            acknowledged_below,
            mutation: Some(Mutation { op: Some(op) }),
        };
        self.table.apply(&command).expect("the table holds")
    }

    fn answer(&mut self, request: &ReadRequest) -> Result<ReadResponse, Code> {
        use read_request::Op as Question;
        let table = &self.table;
        let mut response = ReadResponse::default();
        match request.op.as_ref().expect("a question") {
            Question::Lookup(op) => response.attr = Some(table.lookup(InodeId(op.parent), &op.name)?),
            Question::GetAttr(op) => response.attr = Some(table.get_attr(InodeId(op.inode))?),
            Question::Open(op) => {
                self.check_session(request.session)?;
                let attr = table.get_attr(InodeId(op.inode))?;
                let (_, map) = table.read_map(InodeId(op.inode), FileOffset(0), attr.size_bytes, 16)?;
                response.map = (map.covered_bytes == attr.size_bytes).then_some(map);
                response.attr = Some(attr);
            }
            Question::ReadDirectory(op) => {
                let most = usize::try_from(op.max_entries).unwrap();
                let page = table.read_directory(InodeId(op.inode), op.after_cookie, most, op.with_attributes)?;
                (response.entries, response.end_of_directory) = (page.entries, page.end);
            }
            Question::ReadMap(op) => {
                let most = usize::try_from(op.max_extents).unwrap();
                let (attr, map) = table.read_map(InodeId(op.inode), FileOffset(op.offset), op.length_bytes, most)?;
                (response.attr, response.map) = (Some(attr), Some(map));
            }
            Question::ReadLink(op) => response.value = table.read_link(InodeId(op.inode))?,
            Question::GetXattr(op) => response.value = table.get_xattr(InodeId(op.inode), &op.name)?,
            Question::ListXattr(op) => response.names = table.list_xattr(InodeId(op.inode))?,
            Question::StatFs(_) => response.stat = Some(table.stat_fs()),
            Question::GetGroups(op) => {
                let page = table.groups_since((op.since.expect("a cursor"), GroupId(op.after_group)));
                (response.groups, response.more_groups) = (page.groups, page.more);
                (response.next_since, response.next_after_group) = (page.cursor.0, page.cursor.1.0);
                self.say_versions(&mut response);
            }
            Question::GetNodes(op) => {
                let place = |disk: u64| NodeAddress {
                    node: 10 + disk,
                    address: datanode(disk).to_string(),
                    alive: !self.thought_dead.contains(&disk),
                    ..NodeAddress::default()
                };
                // Two on a page.
                let mut nodes: Vec<NodeAddress> =
                    (1..=DATANODES).map(place).filter(|node| node.node > op.after_node).collect();
                response.more_nodes = nodes.len() > 2;
                nodes.truncate(2);
                response.nodes = nodes;
                self.say_versions(&mut response);
            }
            Question::KeepAlive(_) => {
                self.check_session(request.session)?;
                response.floor = table.floor().0;
                self.say_versions(&mut response);
            }
            Question::Walk(op) => {
                response.attr = Some(table.get_attr(InodeId(op.inode))?);
                response.walked = table.walk(InodeId(op.inode), &op.names);
            }
        }
        Ok(response)
    }

    fn say_versions(&self, response: &mut ReadResponse) {
        response.groups_changes = self.table.groups_version();
        response.nodes_version = self.thought_dead.iter().fold(1, |hash, disk| hash * 31 + disk);
    }

    fn check_session(&self, session: u64) -> Result<(), Code> {
        if self.table.has_session(SessionId(session)) { Ok(()) } else { Err(Code::SessionExpired) }
    }

    fn put(&mut self, disk: u64, header: ShardHeader, payload: Bytes) -> Status {
        if header.chunk < self.floor {
            self.refused_puts += 1;
            return Status::BelowFloor;
        }
        if self.full.contains(&disk) {
            return Status::NoSpace;
        }
        let key = (disk, header.chunk, header.shard);
        match self.shards.get(&key) {
            Some((known, bytes)) if *known != header || *bytes != payload => Status::Conflict,
            _ => {
                self.shards.insert(key, (header, payload));
                Status::Ok
            }
        }
    }

    fn fetch(&mut self, request: &ReadShardsRequest) -> (ReadShardsResponse, Bytes) {
        let mut body = BytesMut::new();
        let mut results = Vec::new();
        for range in &request.ranges {
            let found = self.shards.get(&(range.disk, range.chunk, range.shard));
            let Some((header, payload)) = found.filter(|(header, _)| header.nonce == range.nonce) else {
                results.push(ShardData { status: Status::NotFound.into(), ..ShardData::default() });
                continue;
            };
            let index = |bytes: u32| usize::try_from(bytes).unwrap();
            let part = &payload[index(range.offset)..index(range.offset + range.length_bytes)];
            let pages = index(range.offset / PAGE) * 4..index((range.offset + range.length_bytes) / PAGE) * 4;
            let page_checksums = header.page_checksums.slice(pages);
            body.extend_from_slice(part);
            if self.random.chance(self.faults.damaged) {
                let last = body.len() - 1;
                body[last] ^= 1;
            }
            results.push(ShardData {
                status: Status::Ok.into(),
                length_bytes: range.length_bytes,
                page_checksums,
                ..ShardData::default()
            });
        }
        if let Some((amiss, disks)) = &self.amiss
            && request.ranges.first().is_some_and(|range| disks.contains(&range.disk))
        {
            amiss.spoil(&mut results, &mut body);
        }
        (ReadShardsResponse { results }, body.freeze())
    }
}

impl Network for Cluster {
    fn mutate(&self, to: SocketAddr, request: MutateRequest, timeout: Duration) -> Call<MutateResponse> {
        let elsewhere = |leader| MutateResponse { leader, ..refusal(Code::NotLeader) };
        self.ask_leader(to, timeout, elsewhere, move |state| {
            let op = request.mutation.and_then(|mutation| mutation.op).expect("an operation");
            assert!(!is_leader_only(&op));
            state.apply(op, request.session, request.sequence, request.acknowledged_below)
        })
    }

    fn read(&self, to: SocketAddr, request: ReadRequest, timeout: Duration) -> Call<ReadResponse> {
        let elsewhere = |leader| ReadResponse { leader, code: Code::NotLeader.into(), ..ReadResponse::default() };
        self.ask_leader(to, timeout, elsewhere, move |state| {
            let refuse = |code: Code| ReadResponse { code: code.into(), ..ReadResponse::default() };
            state.answer(&request).unwrap_or_else(refuse)
        })
    }

    fn put(
        &self,
        to: SocketAddr,
        request: PutShardRequest,
        payload: Bytes,
        timeout: Duration,
    ) -> Call<PutShardResponse> {
        let disk = request.disk;
        assert_eq!(to, datanode(disk));
        let header = request.header.expect("a header");
        let fate = |state: &mut State| {
            let faults = state.faults;
            let lost = state.random.chance(faults.puts_fail) || state.silent.contains(&disk);
            (lost, state.random.chance(faults.puts_late), state.random.below(4000) + 100)
        };
        self.call(timeout, fate, move |state| {
            let status = state.put(disk, header, payload);
            PutShardResponse { status: status.into(), ..PutShardResponse::default() }
        })
    }

    fn fetch(&self, _: SocketAddr, request: ReadShardsRequest, timeout: Duration) -> Call<(ReadShardsResponse, Bytes)> {
        let disks: Vec<u64> = request.ranges.iter().map(|range| range.disk).collect();
        let fate = |state: &mut State| {
            let silent = disks.iter().any(|disk| state.silent.contains(disk));
            let faults = state.faults;
            (silent || state.random.chance(faults.reads_fail), false, state.random.below(2000) + 100)
        };
        self.call(timeout, fate, move |state| state.fetch(&request))
    }

    fn reserve(&self, _: SocketAddr, request: ReserveSpaceRequest, timeout: Duration) -> Call<ReserveSpaceResponse> {
        let silent = self.state().silent.contains(&request.disks[0].disk);
        let fate = |state: &mut State| (silent, false, state.random.below(500) + 20);
        self.call(timeout, fate, move |state| {
            let grants = request.disks.iter().map(|disk| DiskGrant {
                disk: disk.disk,
                granted_bytes: disk.wanted_bytes.min(state.free_bytes),
                ..DiskGrant::default()
            });
            ReserveSpaceResponse { grants: grants.collect() }
        })
    }

    fn volume(&self) -> Call<Volume> {
        let volume = Cluster::volume(self);
        Box::pin(async move { Ok(volume) })
    }
}

thread_local! {
    /// A task of this thread has panicked; and who is to be told.
    static PANICKED: RefCell<(bool, Option<Waker>)> = const { RefCell::new((false, None)) };
}

/// Runs a test in virtual time: nobody waits for real. A task that panics ends the test, too: whoever waits for what it would
/// have done would wait for ever, as time does not pass where nothing is going to happen.
pub(crate) fn in_virtual_time<T>(test: impl Future<Output = T>) -> T {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let former = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            former(panic);
            let told = PANICKED.try_with(|state| {
                let mut state = state.borrow_mut();
                state.0 = true;
                state.1.take()
            });
            if let Ok(Some(test)) = told {
                test.wake();
            }
        }));
    });
    PANICKED.set((false, None));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let mut test = std::pin::pin!(test);
    runtime.block_on(std::future::poll_fn(|context| {
        let panicked = PANICKED.replace((false, Some(context.waker().clone()))).0;
        assert!(!panicked, "a task has panicked");
        test.as_mut().poll(context)
    }))
}

/// Chunks that some file of the table needs.
pub(crate) fn live_chunks(table: &Table, inode: InodeId) -> Vec<ChunkId> {
    let (_, map) = table.read_map(inode, FileOffset(0), u64::MAX, 4096).expect("a file");
    map.chunks.iter().map(|record| ChunkId(record.chunk)).collect()
}
