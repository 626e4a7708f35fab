//! Between eraftpb and the rest of this crate: conversions, and what is accepted from the network. Pure.

use bytes::Bytes;
use holdfast_common::{LogIndex, Term};
use protobuf::Message as _;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Message, MessageType};

use crate::log::record::{HardState as LoggedHardState, LogEntry};

/// Entry type of commands, as logged.
pub(crate) const COMMAND: u8 = 0;

/// `None` for a kind that this program does not know. Read as a command it would change the state to something else than it
/// did where it is known.
pub(crate) fn entry_from_log(entry: LogEntry) -> Option<Entry> {
    let mut out = Entry::default();
    out.set_entry_type(match entry.kind {
        COMMAND => EntryType::EntryNormal,
        1 => EntryType::EntryConfChange,
        2 => EntryType::EntryConfChangeV2,
        _ => return None,
    });
    (out.index, out.term, out.data) = (entry.index.0, entry.term.0, entry.data);
    Some(out)
}

pub(crate) fn log_from_entry(entry: &Entry) -> LogEntry {
    let kind = match entry.get_entry_type() {
        EntryType::EntryNormal => COMMAND,
        EntryType::EntryConfChange => 1,
        EntryType::EntryConfChangeV2 => 2,
    };
    LogEntry { index: LogIndex(entry.index), term: Term(entry.term), kind, data: entry.data.clone() }
}

pub(crate) fn hard_state(hard: &HardState) -> LoggedHardState {
    LoggedHardState { term: Term(hard.term), vote: hard.vote, commit: LogIndex(hard.commit) }
}

pub(crate) fn conf_state(voters: &[u64], learners: &[u64]) -> ConfState {
    let mut conf = ConfState::default();
    conf.set_voters(voters.to_vec());
    conf.set_learners(learners.to_vec());
    conf
}

pub(crate) fn encode(message: &Message) -> Bytes {
    // Only fails for uninitialised required fields or messages beyond 2 GiB; proto3 has none of the former.
    message.write_to_bytes().expect("a raft message encodes").into()
}

/// Reads a message from a node, or says nothing: what is malformed, misdirected or never sent by us is dropped.
pub(crate) fn decode(from: u64, to: u64, bytes: &Bytes) -> Option<Message> {
    let message = Message::parse_from_carllerche_bytes(bytes).ok()?;
    (message.from == from && message.to == to && message.term > 0 && plausible(&message)).then_some(message)
}

/// Leadership transfer would void leases, forwarded proposals and reads are never sent, and local messages have no
/// business on a network.
fn plausible(message: &Message) -> bool {
    match message.get_msg_type() {
        MessageType::MsgAppend => {
            let next = message.index.saturating_add(1);
            message.entries.iter().zip(next..).all(|(entry, index)| entry.index == index && entry.term > 0)
        }
        MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => message.context.is_empty(),
        MessageType::MsgSnapshot => {
            let metadata = message.get_snapshot().get_metadata();
            metadata.index > 0 && metadata.term > 0 && !metadata.get_conf_state().voters.is_empty()
        }
        MessageType::MsgAppendResponse
        | MessageType::MsgRequestVoteResponse
        | MessageType::MsgRequestPreVoteResponse
        | MessageType::MsgHeartbeat
        | MessageType::MsgHeartbeatResponse => true,
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgPropose
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgTransferLeader
        | MessageType::MsgTimeoutNow
        | MessageType::MsgReadIndex
        | MessageType::MsgReadIndexResp => false,
    }
}
