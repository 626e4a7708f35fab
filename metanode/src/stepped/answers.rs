//! Answers of consensus to proposals of a stepped metanode, and the time until somebody gives them on.

use super::{Now, Output, SteppedMetanode, Waiting};
use crate::core::mutating::{self, Note};
use crate::table::refusal;
use bytes::Bytes;
use holdfast_common::{Term, VolumeId};
use holdfast_consensus::ProposeError;
use holdfast_proto::meta::{Code, MutateResponse};
use prost::Message;

/// Answers to creates that open their inode, decided, and neither noted nor told.
#[derive(Default)]
pub(super) struct Held {
    holds: bool,
    answers: Vec<(u64, Result<Bytes, ProposeError>)>,
}

impl Held {
    /// Whether some are to be given now.
    pub(super) fn are_due(&self) -> bool {
        !self.holds && !self.answers.is_empty()
    }
}

impl SteppedMetanode {
    /// While held, creates that open their inode are not answered, and everything else goes on: in the real one, each request has
    /// a task that notes and tells what was decided, and may come to it late. What was held is answered with the next turn
    /// after that.
    pub fn hold_creates(&mut self, holds: bool) {
        self.held.holds = holds;
    }

    /// Gives the answers that are held no longer.
    pub(super) fn answer_held(&mut self, now: Now) {
        if self.held.holds {
            return;
        }
        for (ticket, answer) in std::mem::take(&mut self.held.answers) {
            self.proposed(now, ticket, answer);
        }
    }

    pub(super) fn proposed(&mut self, now: Now, ticket: u64, answer: Result<Bytes, ProposeError>) {
        let opens = |waiting: &Waiting| matches!(waiting, Waiting::Mutate { note: Note::Opened { .. }, .. });
        if self.held.holds && self.waiting.get(&ticket).is_some_and(opens) {
            return self.held.answers.push((ticket, answer));
        }
        match self.waiting.remove(&ticket) {
            Some(Waiting::Mutate { volume, term, ticket, note }) => {
                let response = self.end(now, (volume, term), &note, answer);
                self.outputs.push(Output::Mutated { ticket, response });
            }
            Some(Waiting::Own { volume, term, work }) => {
                self.worked(now, (volume, term), work.proposed(volume, answer))
            }
            // Given up.
            Some(Waiting::Read { .. } | Waiting::Admit { .. }) | None => {}
        }
    }

    fn end(
        &mut self,
        now: Now,
        (volume, term): (VolumeId, Term),
        note: &Note,
        answer: Result<Bytes, ProposeError>,
    ) -> MutateResponse {
        let ended = match self.seated(now, volume, term) {
            Some((mut view, _)) => {
                let ended = mutating::end(&mut view, note, answer);
                mutating::let_go(&mut view, note);
                ended
            }
            // Dropped meanwhile.
            None => answer.map_err(|_| Box::new(refusal(Code::TableStopped))),
        };
        match ended {
            Ok(encoded) => MutateResponse::decode(encoded).expect("apply answers with an encoded response"),
            Err(response) => *response,
        }
    }
}
