//! Reads: the leader only, behind a read barrier, from the state as it then is.

use crate::hosted::{Context, Hosted, NotLed};
use crate::machine::TableMachine;
use crate::table::Table;
use holdfast_common::{GroupId, Incarnation, InodeId, NodeId, SessionId, VolumeId};
use holdfast_consensus::ReadError;
use holdfast_proto::meta::read_request::Op;
use holdfast_proto::meta::{Code, FsStat, KeepAlive, Kind, ReadRequest, ReadResponse};
use holdfast_transport::{Refusal, Reply};
use parking_lot::RwLockReadGuard;

/// A file's whole map comes with its open if it has at most this many extents: small files need no further request.
const OPEN_MAP_EXTENTS_MAX: usize = 16;

type Outcome = Result<ReadResponse, Code>;

pub(super) async fn read(context: &Context, request: ReadRequest) -> Result<Reply, Refusal> {
    let response = run(context, &request).await.unwrap_or_else(|response| *response);
    Ok(Reply::message(&response))
}

fn refuse(code: Code) -> Box<ReadResponse> {
    Box::new(ReadResponse { code: code.into(), ..ReadResponse::default() })
}

async fn run(context: &Context, request: &ReadRequest) -> Result<ReadResponse, Box<ReadResponse>> {
    let hosted = context.hosted(VolumeId(request.volume)).ok_or_else(|| refuse(Code::NoSuchVolume))?;
    let not_leader = |leader: Option<NodeId>| {
        let leader = leader.map(|node| context.neighbours.address_text(node)).unwrap_or_default();
        Box::new(ReadResponse { leader, ..*refuse(Code::NotLeader) })
    };
    let term = match hosted.led_term() {
        Ok(term) => term,
        Err(NotLed::Stopped) => return Err(refuse(Code::TableStopped)),
        Err(NotLed::By(leader)) => return Err(not_leader(leader)),
    };
    match hosted.group.read_barrier().await {
        Ok(()) => {}
        Err(ReadError::NotLeader { leader }) => return Err(not_leader(leader)),
        Err(ReadError::Overloaded) => return Err(refuse(Code::Unavailable)),
        Err(ReadError::Stopped) => return Err(refuse(Code::TableStopped)),
    }
    let reader = Reader { context, hosted: &hosted, term, session: SessionId(request.session) };
    reader.answer(request).map_err(refuse)
}

struct Reader<'a> {
    context: &'a Context,
    hosted: &'a Hosted,
    term: u64,
    session: SessionId,
}

impl Reader<'_> {
    fn state(&self) -> RwLockReadGuard<'_, TableMachine> {
        self.hosted.group.state().read()
    }

    fn answer(&self, request: &ReadRequest) -> Outcome {
        match self.state().table().configuration() {
            None => return Err(Code::Unavailable),
            Some(configuration) if configuration.incarnation != Incarnation(request.incarnation) => {
                return Err(Code::NoSuchVolume);
            }
            Some(_) => {}
        }
        match request.op.as_ref().ok_or(Code::Invalid)? {
            Op::Open(op) => self.open(InodeId(op.inode)),
            Op::KeepAlive(op) => self.keep_alive(op),
            op => self.answer_from(self.state().table(), op),
        }
    }

    fn answer_from(&self, table: &Table, op: &Op) -> Outcome {
        let mut response = ReadResponse::default();
        match op {
            Op::Lookup(op) => response.attr = Some(table.lookup(InodeId(op.parent), &op.name)?),
            Op::GetAttr(op) => response.attr = Some(table.get_attr(InodeId(op.inode))?),
            Op::Walk(op) => {
                response.attr = Some(table.get_attr(InodeId(op.inode))?);
                response.walked = table.walk(InodeId(op.inode), &op.names);
            }
            Op::ReadDirectory(op) => {
                let max_entries = usize::try_from(op.max_entries).unwrap_or(usize::MAX);
                let page = table.read_directory(InodeId(op.inode), op.after_cookie, max_entries, op.with_attributes)?;
                response.entries = page.entries;
                response.end_of_directory = page.end;
            }
            Op::ReadMap(op) => {
                let max_extents = usize::try_from(op.max_extents).unwrap_or(usize::MAX);
                let (attr, map) = table.read_map(InodeId(op.inode), op.offset, op.length_bytes, max_extents)?;
                response.attr = Some(attr);
                response.map = Some(map);
                self.say_versions(table, &mut response);
            }
            Op::ReadLink(op) => response.value = table.read_link(InodeId(op.inode))?,
            Op::GetXattr(op) => response.value = table.get_xattr(InodeId(op.inode), &op.name)?,
            Op::ListXattr(op) => response.names = table.list_xattr(InodeId(op.inode))?,
            Op::StatFs(_) => response.stat = Some(self.stat_fs(table)),
            Op::GetGroups(op) => {
                match op.since {
                    Some(since) => {
                        let page = table.groups_since((since, GroupId(op.after_group)));
                        response.groups = page.groups;
                        (response.next_since, response.next_after_group) = (page.cursor.0, page.cursor.1.0);
                        response.more_groups = page.more;
                    }
                    None => {
                        response.groups = table.groups();
                        response.nodes = self.context.neighbours.addresses();
                    }
                }
                self.say_versions(table, &mut response);
            }
            Op::GetNodes(op) => {
                (response.nodes, response.more_nodes) = self.context.neighbours.addresses_after(NodeId(op.after_node));
                self.say_versions(table, &mut response);
            }
            Op::Open(_) | Op::KeepAlive(_) => return Err(Code::Invalid),
        }
        Ok(response)
    }

    /// Registers first and looks then: an inode that is found after it was registered cannot be reaped any more.
    fn open(&self, inode: InodeId) -> Outcome {
        let registered = self.session != SessionId(0);
        if registered {
            self.check_session()?;
            let now_ms = self.context.now_ms();
            if !self.hosted.attendance(self.term, now_ms).open(self.session, inode, now_ms) {
                return Err(Code::Stale);
            }
        }
        let opened = self.opened(inode);
        if opened.is_err() && registered {
            self.hosted.attendance(self.term, self.context.now_ms()).close(self.session, inode);
        }
        opened
    }

    fn opened(&self, inode: InodeId) -> Outcome {
        let state = self.state();
        let table = state.table();
        let attr = table.get_attr(inode)?;
        let mut response = ReadResponse { attr: Some(attr), ..ReadResponse::default() };
        if attr.kind() == Kind::File {
            let (_, map) = table.read_map(inode, 0, attr.size_bytes, OPEN_MAP_EXTENTS_MAX)?;
            if map.covered_bytes == attr.size_bytes {
                response.map = Some(map);
                self.say_versions(table, &mut response);
            }
        }
        Ok(response)
    }

    fn keep_alive(&self, op: &KeepAlive) -> Outcome {
        self.check_session()?;
        for suspect in &op.suspects {
            tracing::info!(
                volume = %self.hosted.volume, session = %self.session, group = suspect.group, slot = suspect.slot,
                "a client could not reach a member"
            );
        }
        let now_ms = self.context.now_ms();
        let attached = op.attach.then_some(op.open.as_slice());
        let attach_needed =
            self.hosted.attendance(self.term, now_ms).keep_alive(self.session, &op.released, attached, now_ms);
        let mut response = ReadResponse { attach_needed, ..ReadResponse::default() };
        self.say_versions(self.state().table(), &mut response);
        Ok(response)
    }

    fn check_session(&self) -> Result<(), Code> {
        if self.state().table().has_session(self.session) { Ok(()) } else { Err(Code::SessionExpired) }
    }

    /// `groups_version` is for clients that know no cursor: it changes when groups, addresses or liveness do, and is the
    /// same on every metanode that knows the same.
    fn say_versions(&self, table: &Table, response: &mut ReadResponse) {
        let addresses = self.context.neighbours.fingerprint();
        let mixed = addresses.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(table.groups_version());
        response.groups_version = mixed.max(1);
        response.groups_changes = table.groups_version();
        response.nodes_version = addresses;
    }

    /// What is left is the least of what the quota and what the disks leave, less what is allocated and not yet written.
    fn stat_fs(&self, table: &Table) -> FsStat {
        let stat = table.stat_fs();
        let on_disks_bytes = self.hosted.on_disks_bytes(self.context, table).saturating_sub(table.allocated_bytes());
        FsStat { available_bytes: stat.available_bytes.min(on_disks_bytes), ..stat }
    }
}
