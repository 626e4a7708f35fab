//! Calls between machines: each ends once, by an answer, a closed connection, or its time.

use std::time::Duration;

use holdfast_common::NodeId;
use holdfast_proto::meta::read_request::Op;
use holdfast_transport::RpcError;

use super::{Event, TRANSIT_NS_MAX, World};
use crate::clock::MS;
use crate::machine::Deferred;
use crate::packet::{Answer, Packet, Request, Response};

/// Percent of the answers with a part of a file's map that are late: what was asked after them is answered before.
const LATE_MAPS_PERCENT: u64 = 10;
const LATE_MAP_NS_MAX: u64 = 300 * MS;

/// A call under way.
pub(super) struct OpenCall {
    pub(super) caller: NodeId,
    life: u64,
    ticket: u64,
    pub(super) to: NodeId,
    expires: (u64, u64),
}

fn is_keep_alive(request: &Request) -> bool {
    matches!(request, Request::Read(read) if matches!(read.op, Some(Op::KeepAlive(_))))
}

fn tells_map(answer: &Answer) -> bool {
    matches!(answer, Ok(Response::Read(response)) if response.map.is_some())
}

impl World {
    pub(super) fn call(&mut self, caller: NodeId, ticket: u64, to: NodeId, request: Box<Request>, timeout: Duration) {
        let call = self.next_call;
        self.next_call += 1;
        let machine = &self.machines[&caller];
        let (life, wait) = (machine.life, machine.clock.true_ns(timeout));
        let expires = self.after(wait, Event::Expire { call });
        self.calls.insert(call, OpenCall { caller, life, ticket, to, expires });
        if self.network.refused.contains((caller, to)) {
            let packet = Packet::Answer(call, Box::new(Err(RpcError::Disconnected.into())));
            self.after(TRANSIT_NS_MAX, Event::Arrive { from: to, to: caller, packet });
            return;
        }
        let pauses = is_keep_alive(&request);
        self.send(caller, to, Packet::Call(call, request));
        if pauses
            && self.plan.on
            && let Some(duration) = self.machines.get_mut(&caller).and_then(|it| it.pause_when_asking.take())
        {
            self.pause(caller, duration);
        }
    }

    pub(super) fn answer(&mut self, from: NodeId, call: u64, answer: Box<Answer>, after_ns: u64) {
        let Some(caller) = self.calls.get(&call).map(|open| open.caller) else { return };
        if let Some(mut delay) = self.transit(from, caller) {
            if self.plan.on && tells_map(&answer) && self.random.chance(LATE_MAPS_PERCENT) {
                self.coverage.late_maps += 1;
                delay += self.random.below(LATE_MAP_NS_MAX);
            }
            let packet = Packet::Answer(call, answer);
            self.after(after_ns + delay, Event::Arrive { from, to: caller, packet });
        }
    }

    /// Hands a call's outcome to its caller, if it still waits.
    pub(super) fn end_call(&mut self, call: u64, answer: Answer) {
        let Some(open) = self.calls.remove(&call) else { return };
        self.events.remove(&open.expires);
        let Some(machine) = self.machines.get_mut(&open.caller).filter(|machine| machine.life == open.life) else {
            return;
        };
        let packet = Packet::Answer(open.ticket, Box::new(answer));
        if let Some(deferred) = &mut machine.deferred {
            return deferred.push(Deferred::Packet(open.to, packet));
        }
        let times = machine.clock.times(self.now);
        if let Some(role) = &mut machine.role {
            role.packet(times, open.to, packet);
        }
        self.wake(open.caller);
    }

    /// Calls between two machines fail at once, whatever becomes of them at the other end.
    pub(crate) fn close_connections(&mut self, caller: NodeId, to: NodeId) {
        let between = |open: &OpenCall| open.caller == caller && open.to == to;
        let closed: Vec<u64> = self.calls.iter().filter(|(_, open)| between(open)).map(|(call, _)| *call).collect();
        self.coverage.closed_calls += closed.len() as u64;
        closed.into_iter().for_each(|call| self.end_call(call, Err(RpcError::Disconnected.into())));
    }
}
