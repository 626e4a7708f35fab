//! The process that brings a metanode back which lost its log (R23), as an operator starts it.

use std::time::Duration;

use holdfast_common::NodeId;
use holdfast_consensus::OpenError;
use holdfast_metanode::{Answer, Question, RecoveryStopped, SteppedRecovery};
use holdfast_transport::RpcError;

use crate::clock::Times;
use crate::disk::{format_log, log_directories};
use crate::machine::Machine;
use crate::metanode::MetanodeIdentity;
use crate::packet::{self, Packet, Request, Response};
use crate::role::{Moment, Role, Timer, Wish};
use crate::sabotage::Sabotage;

const PAUSE: Duration = Duration::from_millis(500);
const VOLMGR_TIMEOUT: Duration = Duration::from_secs(2);
/// A leader gives up after ten seconds.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(15);
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);

pub(crate) struct RecoveringRole {
    node: SteppedRecovery,
    volmgr: NodeId,
    /// The present question was asked, under this ticket.
    is_asked: bool,
    ticket: u64,
    answer: Option<Answer>,
    wishes: Vec<Wish>,
}

impl RecoveringRole {
    /// Goes on with the new log that the superblock names, or makes one under a number that none had.
    pub(crate) fn start(
        mut identity: MetanodeIdentity,
        sabotage: Sabotage,
        machine: &mut Machine,
        seed: u64,
    ) -> Result<Self, String> {
        if let Some(unfinished) = machine.superblock.recovering {
            identity.log = unfinished;
            match Self::open(&identity, sabotage, machine, seed, false) {
                Ok(Ok(role)) => return Ok(role),
                Ok(Err(error)) if !error.is_lost() => return Err(error.to_string()),
                // It was not whole yet when its machine died.
                Ok(Err(_)) | Err(_) => {}
            }
        }
        identity.log += 1;
        machine.superblock.recovering = Some(identity.log);
        format_log(&machine.disk, identity.log).map_err(|error| error.to_string())?;
        Self::open(&identity, sabotage, machine, seed, true)?.map_err(|error| error.to_string())
    }

    fn open(
        identity: &MetanodeIdentity,
        sabotage: Sabotage,
        machine: &Machine,
        seed: u64,
        is_new: bool,
    ) -> Result<Result<Self, OpenError>, String> {
        let [log, snapshots] = log_directories(&machine.disk, identity.log)?;
        let opened = SteppedRecovery::open(identity.options(sabotage, seed, is_new), log, snapshots);
        let volmgr = identity.volmgr;
        let role = |node| Self { node, volmgr, is_asked: false, ticket: 0, answer: None, wishes: Vec::new() };
        Ok(opened.map(role))
    }

    fn ask(&mut self) {
        let (to, request, timeout) = match self.node.question() {
            Question::Cluster => (self.volmgr, Request::ShowCluster, VOLMGR_TIMEOUT),
            Question::Volumes => (self.volmgr, Request::ListVolumes, VOLMGR_TIMEOUT),
            Question::Admit { node, request } => (node, Request::Admit(request), ADMIT_TIMEOUT),
            Question::Piece { node, request } => (node, Request::AdmittedPiece(request), PIECE_TIMEOUT),
            Question::Pause => return self.wishes.push(Wish::Arm { timer: Timer::Look, after: PAUSE }),
            Question::Nothing => return self.wishes.push(Wish::Recovered),
        };
        self.ticket += 1;
        self.wishes.push(Wish::Call { ticket: self.ticket, to, request: Box::new(request), timeout });
    }

    /// The answer to the present question, from what came.
    fn taken(&self, answer: packet::Answer) -> Answer {
        let answer = answer.ok();
        match self.node.question() {
            Question::Cluster => Answer::Cluster(answer.and_then(Response::cluster)),
            Question::Volumes => Answer::Volumes(answer.and_then(Response::volumes)),
            Question::Admit { .. } => Answer::Admit(answer.and_then(Response::admitted)),
            Question::Piece { .. } => Answer::Piece(answer.and_then(Response::admitted_piece)),
            Question::Pause | Question::Nothing => Answer::Paused,
        }
    }
}

impl Role for RecoveringRole {
    fn packet(&mut self, _: Times, _: NodeId, packet: Packet) {
        match packet {
            Packet::Answer(ticket, answer) if ticket == self.ticket => self.answer = Some(self.taken(*answer)),
            // Nobody listens.
            Packet::Call(call, _) => {
                let answer = Box::new(Err(RpcError::Disconnected.into()));
                self.wishes.push(Wish::Reply { call, answer, after_ns: 0 });
            }
            Packet::Answer(..) | Packet::Raft(..) => {}
        }
    }

    fn timer(&mut self, _: Times, timer: Timer) {
        if timer == Timer::Look {
            self.answer = Some(Answer::Paused);
        }
    }

    fn drive(&mut self, moment: Moment<'_>) -> Vec<Wish> {
        if let Some(answer) = self.answer.take() {
            self.is_asked = false;
            match self.node.answered(answer) {
                Ok(()) => {}
                Err(RecoveryStopped::Disk(error)) => return vec![Wish::GiveUp(error.to_string())],
                Err(RecoveryStopped::Refused(why)) => panic!("a metanode that lost its log is not let back in: {why}"),
            }
        }
        if !std::mem::replace(&mut self.is_asked, true) && !moment.disk.is_dead() {
            self.ask();
        }
        std::mem::take(&mut self.wishes)
    }
}
