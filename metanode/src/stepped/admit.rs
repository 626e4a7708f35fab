//! Letting a metanode back in that lost its log (R23): as the shell of the real one does it, with the snapshot in memory.

use super::{Now, Output, SteppedMetanode, Waiting};
use crate::core::{admitting, reporting};
use crate::machine::raft_group;
use bytes::Bytes;
use holdfast_common::checksum::crc32c;
use holdfast_common::{NodeId, VolumeId};
use holdfast_consensus::{AdmissionError, AdmissionOut};
use holdfast_proto::raft::admit_answer::Outcome;
use holdfast_proto::raft::{AdmitAnswer, AdmitRequest, Admitted, AdmittedPiece, AdmittedPieceRequest};

/// Longest piece of a snapshot: so small that one of a short simulation takes several.
const PIECE_BYTES: u64 = 4 << 10;

impl SteppedMetanode {
    pub(super) fn admit(&mut self, ticket: u64, request: AdmitRequest) {
        if let Some(why) = self.not_heard(&request) {
            return self.answer_admit(ticket, Outcome::Refused(why));
        }
        let group = raft_group(VolumeId(request.volume));
        let (from, generation) = (NodeId(request.from), request.generation);
        let ticket = self.wait(Waiting::Admit { ticket, request });
        self.node.admit(group, from, generation, ticket);
    }

    /// Why a request is not heard. One that is: nothing that the asker said in a former life is heard from here on.
    fn not_heard(&mut self, request: &AdmitRequest) -> Option<String> {
        let volume = VolumeId(request.volume);
        let table = self.served(volume).and_then(|_| self.node.state(raft_group(volume)));
        let Some(table) = table else { return Some(admitting::NO_REPLICA.to_owned()) };
        let ours = reporting::incarnation(volume, table.table(), &self.known);
        let refused = admitting::refusal(request, &self.options.secret, ours);
        if refused.is_some() || self.starts.is_current(NodeId(request.from), request.generation) {
            return refused;
        }
        Some(admitting::LATER_START.to_owned())
    }

    pub(super) fn admitted(&mut self, now: Now, ticket: u64, admitted: Result<AdmissionOut, AdmissionError>) {
        let Some(Waiting::Admit { ticket, request }) = self.waiting.remove(&ticket) else { return };
        let outcome = match admitted {
            Ok(AdmissionOut { admission, bytes }) => {
                let snapshot_bytes = bytes.len() as u64;
                let transfer = self.grants.keep(&request, bytes.into(), snapshot_bytes, now.now_ms());
                let (leader, term, index) = (self.options.node.0, admission.term.0, admission.index.0);
                Outcome::Admitted(Admitted { leader, term, index, snapshot_bytes, transfer })
            }
            Err(error) => admitting::not_admitted(error),
        };
        self.answer_admit(ticket, outcome);
    }

    fn answer_admit(&mut self, ticket: u64, outcome: Outcome) {
        let answer = AdmitAnswer { outcome: Some(outcome) };
        self.outputs.push(Output::Admitted { ticket, answer });
    }

    pub(super) fn admitted_piece(&mut self, now: Now, ticket: u64, request: &AdmittedPieceRequest) {
        let (head, piece) = match self.grants.piece(request, now.now_ms()) {
            Some((snapshot, left_bytes)) => {
                let end = request.offset + left_bytes.min(PIECE_BYTES);
                let range = |offset| usize::try_from(offset).expect("the snapshot is in memory");
                let piece = snapshot.slice(range(request.offset)..range(end));
                (AdmittedPiece { known: true, crc: crc32c(&piece) }, piece)
            }
            None => (AdmittedPiece { known: false, crc: 0 }, Bytes::new()),
        };
        self.outputs.push(Output::AdmittedPiece { ticket, head, piece });
    }
}
