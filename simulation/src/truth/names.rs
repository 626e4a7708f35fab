//! A simple model of names: what each entry of the log should have done, decided without the table's code.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_common::{InodeId, LogIndex};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{Code, CreateNode, Kind, Link, MutateResponse, Rename, Unlink};
use holdfast_proto::record::TableCommand;

/// A name in a directory.
pub(crate) type Place = (u64, Vec<u8>);

#[derive(Clone, Debug, Default)]
struct Inode {
    directory: bool,
    links: u32,
    names: BTreeMap<Vec<u8>, u64>,
}

/// Inodes that a name led to, each from an index on; 0: none.
type Versions = Vec<(LogIndex, u64)>;

pub(crate) struct Names {
    inodes: BTreeMap<u64, Inode>,
    used: BTreeSet<u64>,
    sessions: BTreeMap<u64, Vec<u8>>,
    executed: BTreeSet<(u64, u64)>,
    /// Entries whose request had come before.
    repeated: u64,
    history: BTreeMap<Place, Versions>,
}

/// The model's verdict on an entry: a change of names, or that it must be refused.
enum Verdict {
    Changes(Vec<(Place, u64)>),
    Refused,
    /// Not about names, or nothing the model knows of.
    Silent,
}

impl Default for Names {
    fn default() -> Self {
        let root = Inode { directory: true, links: 2, names: BTreeMap::new() };
        Self {
            inodes: BTreeMap::from([(InodeId::ROOT.0, root)]),
            used: BTreeSet::from([InodeId::ROOT.0]),
            sessions: BTreeMap::new(),
            executed: BTreeSet::new(),
            repeated: 0,
            history: BTreeMap::new(),
        }
    }
}

impl Names {
    /// Takes an entry and what the table answered; says what is wrong with the answer.
    pub(crate) fn apply(
        &mut self,
        index: LogIndex,
        command: &TableCommand,
        answer: &MutateResponse,
    ) -> Result<(), String> {
        let Some(op) = command.mutation.as_ref().and_then(|mutation| mutation.op.as_ref()) else { return Ok(()) };
        self.follow_sessions(op, command, answer);
        if command.session != 0 {
            if !self.sessions.contains_key(&command.session) && !matches!(op, Op::CloseSession(_)) {
                let refused = answer.code() != Code::Ok;
                return if refused { Ok(()) } else { Err("a session that ended changed something".to_owned()) };
            }
            if !self.executed.insert((command.session, command.sequence)) {
                self.repeated += 1;
                // Its first time counted; that this one changed nothing is seen by whoever compares the names.
                return Ok(());
            }
        }
        let happened = answer.code() == Code::Ok;
        match (self.judge(op, answer), happened) {
            (Verdict::Changes(changes), true) => {
                changes.into_iter().for_each(|(place, inode)| self.set(index, place, inode));
                // What has no name is nobody's parent and cannot be linked again.
                self.inodes.retain(|_, inode| inode.links > 0);
                Ok(())
            }
            (Verdict::Changes(changes), false) => {
                Err(format!("refused with {:?}, and should have made {changes:?}", answer.code()))
            }
            (Verdict::Refused, true) => Err(format!("done, and should have been refused: {op:?}")),
            (Verdict::Refused, false) | (Verdict::Silent, _) => Ok(()),
        }
    }

    fn follow_sessions(&mut self, op: &Op, command: &TableCommand, answer: &MutateResponse) {
        match op {
            Op::OpenSession(open) if answer.code() == Code::Ok => {
                self.sessions.retain(|_, key| *key != open.client_key);
                self.sessions.insert(answer.session, open.client_key.to_vec());
            }
            Op::CloseSession(_) => drop(self.sessions.remove(&command.session)),
            Op::ExpireSessions(expire) => {
                expire.sessions.iter().for_each(|session| drop(self.sessions.remove(session)));
            }
            _ => {}
        }
    }

    fn judge(&self, op: &Op, answer: &MutateResponse) -> Verdict {
        match op {
            Op::Create(create) => self.judge_create(create, answer),
            Op::Link(link) => self.judge_link(link),
            Op::Unlink(unlink) => self.judge_unlink(unlink),
            Op::Rename(rename) => self.judge_rename(rename),
            _ => Verdict::Silent,
        }
    }

    fn child(&self, parent: u64, name: &[u8]) -> Option<u64> {
        self.inodes.get(&parent)?.names.get(name).copied()
    }

    fn is_directory(&self, inode: u64) -> bool {
        self.inodes.get(&inode).is_some_and(|inode| inode.directory)
    }

    fn judge_create(&self, create: &CreateNode, answer: &MutateResponse) -> Verdict {
        if !self.is_directory(create.parent) {
            return Verdict::Refused;
        }
        let made = answer.attr.map_or(0, |attr| attr.inode);
        match self.child(create.parent, &create.name) {
            None if made != 0 && self.used.contains(&made) => Verdict::Refused,
            None => Verdict::Changes(vec![((create.parent, create.name.to_vec()), made)]),
            Some(there) => {
                let opens = !create.exclusive && create.kind() == Kind::File && !self.is_directory(there);
                if !opens {
                    Verdict::Refused
                } else if answer.code() == Code::Ok && made != there {
                    // It answers another file than is there.
                    Verdict::Refused
                } else {
                    Verdict::Changes(Vec::new())
                }
            }
        }
    }

    fn judge_link(&self, link: &Link) -> Verdict {
        let linkable = self.inodes.get(&link.inode).is_some_and(|inode| !inode.directory);
        if !linkable || !self.is_directory(link.parent) || self.child(link.parent, &link.name).is_some() {
            return Verdict::Refused;
        }
        Verdict::Changes(vec![((link.parent, link.name.to_vec()), link.inode)])
    }

    fn judge_unlink(&self, unlink: &Unlink) -> Verdict {
        let Some(inode) = self.child(unlink.parent, &unlink.name) else { return Verdict::Refused };
        let empty = self.inodes.get(&inode).is_none_or(|inode| inode.names.is_empty());
        if self.is_directory(inode) != unlink.directory || !empty {
            return Verdict::Refused;
        }
        Verdict::Changes(vec![((unlink.parent, unlink.name.to_vec()), 0)])
    }

    fn judge_rename(&self, rename: &Rename) -> Verdict {
        let Some(moved) = self.child(rename.parent, &rename.name) else { return Verdict::Refused };
        if !self.is_directory(rename.new_parent) || self.is_below(rename.new_parent, moved) {
            return Verdict::Refused;
        }
        let (from, to) = ((rename.parent, rename.name.to_vec()), (rename.new_parent, rename.new_name.to_vec()));
        let there = self.child(rename.new_parent, &rename.new_name);
        match there {
            None if rename.exchange => Verdict::Refused,
            None => Verdict::Changes(vec![(from, 0), (to, moved)]),
            Some(_) if rename.no_replace => Verdict::Refused,
            Some(other) if rename.exchange => {
                if self.is_below(rename.parent, other) {
                    return Verdict::Refused;
                }
                Verdict::Changes(vec![(from, other), (to, moved)])
            }
            Some(other) if other == moved => Verdict::Changes(Vec::new()),
            Some(other) => {
                let empty = self.inodes.get(&other).is_none_or(|inode| inode.names.is_empty());
                if self.is_directory(other) != self.is_directory(moved) || !empty {
                    return Verdict::Refused;
                }
                Verdict::Changes(vec![(from, 0), (to, moved)])
            }
        }
    }

    /// Whether an inode is `above`, or in it at any depth.
    fn is_below(&self, inode: u64, above: u64) -> bool {
        let mut waiting = vec![above];
        while let Some(at) = waiting.pop() {
            if at == inode {
                return true;
            }
            waiting.extend(self.inodes.get(&at).into_iter().flat_map(|at| at.names.values().copied()));
        }
        false
    }

    fn set(&mut self, index: LogIndex, place: Place, inode: u64) {
        let names = &mut self.inodes.entry(place.0).or_default().names;
        let former = if inode == 0 { names.remove(&place.1) } else { names.insert(place.1.clone(), inode) };
        if let Some(former) = former.and_then(|former| self.inodes.get_mut(&former)) {
            former.links = former.links.saturating_sub(1);
        }
        if inode != 0 {
            self.used.insert(inode);
            self.inodes.entry(inode).or_default().links += 1;
        }
        self.history.entry(place).or_default().push((index, inode));
    }

    /// Notes that an inode that was made is a directory.
    pub(crate) fn made_directory(&mut self, inode: u64) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.directory = true;
        }
    }

    /// The inode that the model believes a name leads to now; 0: none.
    pub(crate) fn now(&self, parent: u64, name: &[u8]) -> u64 {
        self.child(parent, name).unwrap_or(0)
    }

    /// The names of a directory now.
    pub(crate) fn listing(&self, parent: u64) -> BTreeMap<Vec<u8>, u64> {
        self.inodes.get(&parent).map(|inode| inode.names.clone()).unwrap_or_default()
    }

    /// The inode that a name led to at an index.
    fn at(&self, parent: u64, name: &[u8], index: LogIndex) -> u64 {
        let Some(versions) = self.history.get(&(parent, name.to_vec())) else { return 0 };
        versions.iter().rev().find(|(from, _)| *from <= index).map_or(0, |(_, inode)| *inode)
    }

    /// The first index from `low` to `high` at which a name led to `inode`.
    pub(crate) fn first_time(
        &self,
        parent: u64,
        name: &[u8],
        inode: u64,
        low: LogIndex,
        high: LogIndex,
    ) -> Option<LogIndex> {
        if self.at(parent, name, low) == inode {
            return Some(low);
        }
        let versions = self.history.get(&(parent, name.to_vec()))?;
        versions.iter().find(|(from, led)| *from > low && *from <= high && *led == inode).map(|(from, _)| *from)
    }

    /// The first index from `low` to `high` at which a directory had exactly these names.
    pub(crate) fn first_listing(
        &self,
        parent: u64,
        seen: &BTreeMap<Vec<u8>, u64>,
        low: LogIndex,
        high: LogIndex,
    ) -> Option<LogIndex> {
        let places: Vec<_> = self.history.iter().filter(|(place, _)| place.0 == parent).collect();
        let mut moments: Vec<LogIndex> =
            places.iter().flat_map(|(_, versions)| versions.iter().map(|(at, _)| *at)).collect();
        moments.retain(|at| *at > low && *at <= high);
        moments.push(low);
        moments.sort_unstable();
        moments.into_iter().find(|at| {
            let there = places.iter().filter(|(place, _)| self.at(parent, &place.1, *at) != 0);
            let listing: BTreeMap<Vec<u8>, u64> =
                there.map(|(place, _)| (place.1.clone(), self.at(parent, &place.1, *at))).collect();
            listing == *seen
        })
    }

    /// Count of entries whose request had come before.
    pub(crate) fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Whether a command was applied before.
    pub(crate) fn has_executed(&self, command: &TableCommand) -> bool {
        self.executed.contains(&(command.session, command.sequence))
    }

    /// Whether a session is open.
    pub(crate) fn has_session(&self, session: u64) -> bool {
        self.sessions.contains_key(&session)
    }

    /// The open session of a client.
    pub(crate) fn session_of(&self, client_key: &[u8]) -> Option<u64> {
        self.sessions.iter().find(|(_, key)| *key == client_key).map(|(session, _)| *session)
    }
}
