//! Reads: the leader only, behind a read barrier, from the state as it then is.

use super::NotLed;
use super::attendance::OpenList;
use super::known::Known;
use super::view::View;
use crate::table::Table;
use holdfast_common::{FileOffset, GroupId, Incarnation, InodeId, NodeId, SessionId, Term};
use holdfast_consensus::ReadError;
use holdfast_proto::meta::read_request::Op;
use holdfast_proto::meta::{Code, FsStat, KeepAlive, Kind, ReadRequest, ReadResponse};

/// A file's whole map comes with its open if it has at most this many extents: small files need no further request.
const OPEN_MAP_EXTENTS_MAX: usize = 16;

/// `Ok`: the answer was filled in. `Err`: a refusal takes its place.
type Outcome = Result<(), Code>;

pub(crate) fn refusal(code: Code) -> ReadResponse {
    ReadResponse { code: code.into(), ..ReadResponse::default() }
}

/// The answer of a replica that does not lead.
pub(crate) fn not_led(why: &NotLed, known: &Known) -> ReadResponse {
    match why {
        NotLed::By(leader) => not_leader(*leader, known),
        NotLed::Stopped => refusal(Code::TableStopped),
    }
}

fn not_leader(leader: Option<NodeId>, known: &Known) -> ReadResponse {
    let leader = leader.map(|node| known.address_text(node).to_owned()).unwrap_or_default();
    ReadResponse { leader, ..refusal(Code::NotLeader) }
}

/// The answer once the barrier was passed or refused.
pub(crate) fn answer(view: &mut impl View, request: &ReadRequest, barrier: Result<(), ReadError>) -> ReadResponse {
    match barrier {
        Ok(()) => {}
        Err(ReadError::NotLeader { leader }) => return view.known(|known| not_leader(leader, known)),
        Err(ReadError::Overloaded) => return refusal(Code::Unavailable),
        Err(ReadError::Stopped) => return refusal(Code::TableStopped),
    }
    let mut reader = Reader { view, session: SessionId(request.session) };
    let mut response = ReadResponse::default();
    match reader.answer(request, &mut response) {
        Ok(()) => response,
        Err(code) => refusal(code),
    }
}

struct Reader<'a, V> {
    view: &'a mut V,
    session: SessionId,
}

impl<V: View> Reader<'_, V> {
    fn answer(&mut self, request: &ReadRequest, response: &mut ReadResponse) -> Outcome {
        self.view.table(|table| match table.configuration() {
            None => Err(Code::Unavailable),
            Some(configuration) if configuration.incarnation != Incarnation(request.incarnation) => {
                Err(Code::NoSuchVolume)
            }
            Some(_) => Ok(()),
        })?;
        match request.op.as_ref().ok_or(Code::Invalid)? {
            Op::Open(op) => self.open(InodeId(op.inode), response),
            Op::KeepAlive(op) => self.keep_alive(op, response),
            op => self.view.table(|table| self.answer_from(table, op, response)),
        }
    }

    fn answer_from(&self, table: &Table, op: &Op, response: &mut ReadResponse) -> Outcome {
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
                let (attr, map) =
                    table.read_map(InodeId(op.inode), FileOffset(op.offset), op.length_bytes, max_extents)?;
                response.attr = Some(attr);
                response.map = Some(map);
                self.say_versions(table, response);
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
                        response.nodes = self.view.known(Known::addresses);
                    }
                }
                self.say_versions(table, response);
            }
            Op::GetNodes(op) => {
                (response.nodes, response.more_nodes) =
                    self.view.known(|known| known.addresses_after(NodeId(op.after_node)));
                self.say_versions(table, response);
            }
            Op::Open(_) | Op::KeepAlive(_) => return Err(Code::Invalid),
        }
        Ok(())
    }

    /// Registers first and looks then: an inode that is found after it was registered cannot be reaped any more.
    fn open(&mut self, inode: InodeId, response: &mut ReadResponse) -> Outcome {
        let session = self.session;
        let registered = session != SessionId(0);
        if registered {
            self.check_session()?;
            let now_ms = self.view.now_ms();
            if !self.view.attendance(|attendance| attendance.open(session, inode, now_ms)) {
                return Err(Code::Stale);
            }
        }
        let opened = self.view.table(|table| self.opened(table, inode, response));
        if opened.is_err() && registered {
            self.view.attendance(|attendance| attendance.close(session, inode));
        }
        opened
    }

    fn opened(&self, table: &Table, inode: InodeId, response: &mut ReadResponse) -> Outcome {
        let attr = table.get_attr(inode)?;
        response.attr = Some(attr);
        if attr.kind() == Kind::File {
            let (_, map) = table.read_map(inode, FileOffset(0), attr.size_bytes, OPEN_MAP_EXTENTS_MAX)?;
            if map.covered_bytes == attr.size_bytes {
                response.map = Some(map);
                self.say_versions(table, response);
            }
        }
        Ok(())
    }

    fn keep_alive(&mut self, op: &KeepAlive, response: &mut ReadResponse) -> Outcome {
        self.check_session()?;
        for suspect in &op.suspects {
            tracing::info!(
                volume = %self.view.volume(), session = %self.session, group = suspect.group, slot = suspect.slot,
                "a client could not reach a member"
            );
        }
        let (session, now_ms) = (self.session, self.view.now_ms());
        let term = self.view.term().0;
        let list = op.attach.then_some(OpenList { of_term: op.attach_term.map(Term), open: &op.open });
        let attach_needed =
            self.view.attendance(|attendance| attendance.keep_alive(session, &op.released, list, now_ms));
        response.attach_needed = attach_needed.ok_or(Code::Unavailable)?;
        response.term = term;
        self.view.table(|table| {
            response.floor = table.floor().0;
            self.say_versions(table, response);
        });
        Ok(())
    }

    fn check_session(&self) -> Result<(), Code> {
        let is_there = self.view.table(|table| table.has_session(self.session));
        if is_there { Ok(()) } else { Err(Code::SessionExpired) }
    }

    /// `groups_version` is for clients that know no cursor: it changes when block groups, addresses or liveness do, and
    /// is the same on every metanode that knows the same.
    fn say_versions(&self, table: &Table, response: &mut ReadResponse) {
        let addresses = self.view.known(Known::fingerprint);
        let mixed = addresses.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(table.groups_version());
        response.groups_version = mixed.max(1);
        response.groups_changes = table.groups_version();
        response.nodes_version = addresses;
    }

    /// Available is the less of what the quota and what the disks leave, without what is allocated and not yet written.
    fn stat_fs(&self, table: &Table) -> FsStat {
        let stat = table.stat_fs();
        let on_disks_bytes = self.view.on_disks_bytes(table).saturating_sub(table.allocated_bytes());
        FsStat { available_bytes: stat.available_bytes.min(on_disks_bytes), ..stat }
    }
}

#[cfg(test)]
mod tests;
