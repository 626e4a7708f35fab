//! Files that one client writes until its session is lost, and another from then on.

use std::collections::BTreeMap;

use bytes::Bytes;
use holdfast_common::InodeId;

/// State of one file.
enum State {
    /// Its writer has it open.
    Idle,
    /// Its writer is in a write.
    Writing,
    /// The session of its writer was lost; a client writes it anew.
    Taken { by: usize },
    /// The successor's content is durable, and nothing else may ever be read.
    Settled(Bytes),
    /// A write was under way when the session was lost, or the successor failed: nothing is known.
    Void,
}

struct Takeover {
    writer: usize,
    /// The writer's session, under which the file was made.
    session: u64,
    state: State,
}

/// All of them; inodes are never used twice.
#[derive(Default)]
pub(crate) struct Takeovers(BTreeMap<InodeId, Takeover>);

impl Takeovers {
    /// A client has made a file under a session, and alone writes it.
    pub(crate) fn begin(&mut self, inode: InodeId, writer: usize, session: u64) {
        self.0.insert(inode, Takeover { writer, session, state: State::Idle });
    }

    /// Its writer begins or ends a write. False if the file is the writer's no longer.
    pub(crate) fn write(&mut self, inode: InodeId, begins: bool, is_there: impl Fn(u64) -> bool) -> bool {
        let Some(file) = self.0.get_mut(&inode) else { return false };
        let is_lost = !is_there(file.session);
        file.state = match std::mem::replace(&mut file.state, State::Void) {
            State::Idle if begins && !is_lost => State::Writing,
            // Under which session it was written nobody can say.
            State::Writing if is_lost => State::Void,
            State::Writing => State::Idle,
            other => other,
        };
        !is_lost
    }

    /// A file for a client to take over.
    pub(crate) fn take(&mut self, by: usize, is_there: impl Fn(u64) -> bool) -> Option<InodeId> {
        let is_free =
            |file: &Takeover| matches!(file.state, State::Idle) && file.writer != by && !is_there(file.session);
        let (inode, file) = self.0.iter_mut().find(|(_, file)| is_free(file))?;
        file.state = State::Taken { by };
        Some(*inode)
    }

    /// Its successor has synced this content, or could not.
    pub(crate) fn taken(&mut self, inode: InodeId, content: Option<Bytes>) {
        let Some(file) = self.0.get_mut(&inode).filter(|file| matches!(file.state, State::Taken { .. })) else {
            return;
        };
        file.state = content.map_or(State::Void, State::Settled);
    }

    /// Content that a file must have, if it is known.
    pub(crate) fn content(&self, inode: InodeId) -> Option<Bytes> {
        match &self.0.get(&inode)?.state {
            State::Settled(content) => Some(content.clone()),
            _ => None,
        }
    }

    /// Files whose content is known.
    pub(crate) fn settled(&self) -> Vec<InodeId> {
        self.0.keys().copied().filter(|inode| self.content(*inode).is_some()).collect()
    }

    /// A client was killed: what it was about to write is known to nobody.
    pub(crate) fn killed(&mut self, client: usize) {
        for file in self.0.values_mut() {
            let is_its = match file.state {
                State::Writing => file.writer == client,
                State::Taken { by } => by == client,
                _ => false,
            };
            if is_its {
                file.state = State::Void;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INODE: InodeId = InodeId(7);

    const SESSION: u64 = 3;

    fn lives(session: u64) -> bool {
        session == SESSION
    }

    fn is_lost(_: u64) -> bool {
        false
    }

    fn written() -> Takeovers {
        let mut files = Takeovers::default();
        files.begin(INODE, 0, SESSION);
        assert!(files.write(INODE, true, lives) && files.write(INODE, false, lives));
        files
    }

    #[test]
    fn what_a_successor_has_synced_is_known_from_then_on() {
        let mut files = written();
        assert_eq!((files.take(1, lives), files.take(0, is_lost)), (None, None), "lost by nobody; its own");
        assert_eq!(files.take(1, is_lost), Some(INODE));
        assert_eq!(files.content(INODE), None);
        assert!(!files.write(INODE, true, is_lost), "it is the writer's no longer");
        files.taken(INODE, Some(Bytes::from_static(b"anew")));
        assert_eq!((files.settled(), files.content(INODE).as_deref()), (vec![INODE], Some(&b"anew"[..])));
    }

    #[test]
    fn nothing_is_known_of_a_file_in_whose_write_the_session_was_lost() {
        let mut files = written();
        assert!(files.write(INODE, true, lives));
        assert_eq!(files.take(1, is_lost), None);
        assert!(!files.write(INODE, false, is_lost));
        assert_eq!(files.take(1, is_lost), None);
    }

    #[test]
    fn a_client_that_is_killed_leaves_what_it_was_writing_unknown() {
        for (is_taken, killed, is_known) in [(false, 0, false), (true, 1, false), (true, 0, true)] {
            let mut files = written();
            if is_taken {
                assert_eq!(files.take(1, is_lost), Some(INODE));
            } else {
                assert!(files.write(INODE, true, lives));
            }
            files.killed(killed);
            files.taken(INODE, Some(Bytes::from_static(b"anew")));
            assert_eq!(files.content(INODE).is_some(), is_known, "taken: {is_taken}, killed: {killed}");
        }
    }
}
