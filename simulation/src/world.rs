//! The machines, the network between them, and time: events happen one after another, and each follows from the seed.

mod calls;
mod pairs;

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_common::{NodeId, Random};
use holdfast_storage::SimulatedDisk;
use holdfast_transport::RpcError;
use parking_lot::Mutex;

use calls::OpenCall;
use pairs::Pairs;

use crate::clock::{Clock, MS};
use crate::coverage::Coverage;
use crate::machine::{Deferred, Machine};
use crate::machines::{METANODES, VOLMGR, client_of};
use crate::packet::{Packet, Request};
use crate::plan::{Later, Plan};
use crate::role::{Moment, Role, Timer, Wish};
use crate::trace::Trace;
use crate::truth::Truth;
use crate::truth::leases::Lease;

/// A process that has something to do begins within this.
const WAKE_NS_MAX: u64 = 200_000;
/// Longest way of a packet, but for the slow ones.
const TRANSIT_NS_MAX: u64 = 2 * MS;
const SLOW_TRANSIT_NS_MAX: u64 = 900 * MS;
/// Once in so many requests to the volume manager, one comes when its sender may have died and started again.
const LATE_ONE_IN: u64 = 200;
const LATE_TRANSIT_NS_MAX: u64 = 8000 * MS;

/// Something that happens at a time.
enum Event {
    Arrive {
        from: NodeId,
        to: NodeId,
        packet: Packet,
    },
    Timer {
        node: NodeId,
        life: u64,
        timer: Timer,
    },
    /// A process looks at what came.
    Wake {
        node: NodeId,
        life: u64,
    },
    /// A call has waited long enough.
    Expire {
        call: u64,
    },
    /// A paused process goes on.
    Resume {
        node: NodeId,
        life: u64,
    },
    Restart {
        node: NodeId,
    },
    Fault,
    Later(Later),
    Heal(Heal),
}

/// The end of a fault.
#[derive(Clone, Debug)]
pub(crate) enum Heal {
    /// This cut of theirs ends.
    Link(Vec<(NodeId, NodeId)>),
    /// And who calls is not told any more.
    Refused(Vec<(NodeId, NodeId)>),
    Loss,
}

/// Present state of the network.
#[derive(Default)]
pub(crate) struct Network {
    /// Pairs that cannot talk, from the first to the second.
    pub(crate) cut: Pairs,
    /// Of these, pairs of which the first is told so when it calls.
    pub(crate) refused: Pairs,
    pub(crate) loss_percent: u64,
    pub(crate) slow_percent: u64,
    pub(crate) doubled_percent: u64,
}

/// Fates of the machines. They are decided elsewhere; the world says when.
#[derive(Clone, Copy)]
pub(crate) struct Fate {
    /// The next fault is due.
    pub(crate) strike: fn(&mut World),
    /// A part of a fault that was to come later is due.
    pub(crate) come: fn(&mut World, Later),
    /// A snapshot has come to a metanode, which has not looked at it yet.
    pub(crate) snapshot_arrives: fn(&mut World, NodeId),
    /// A metanode has taken a snapshot in, and nothing that follows it.
    pub(crate) snapshot_installed: fn(&mut World, NodeId),
    /// A metanode that lost its log has all of its tables back.
    pub(crate) recovered: fn(&mut World, NodeId),
    /// A metanode's process has ended.
    pub(crate) metanode_ended: fn(&mut World),
}

/// Starts the process of a machine.
pub(crate) type Start = Box<dyn Fn(&mut Machine, &mut Random, &Arc<Mutex<Truth>>) -> Result<Box<dyn Role>, String>>;

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) now: u64,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    pub(crate) machines: BTreeMap<NodeId, Machine>,
    pub(crate) network: Network,
    calls: BTreeMap<u64, OpenCall>,
    next_call: u64,
    pub(crate) truth: Arc<Mutex<Truth>>,
    pub(crate) plan: Plan,
    fate: Fate,
    pub(crate) coverage: Coverage,
    pub(crate) trace: Trace,
    /// Set once the machines are set up.
    pub(crate) start: Start,
}

impl World {
    pub(crate) fn new(seed: u64, truth: Truth, (plan, fate): (Plan, Fate), trace: Trace) -> Self {
        Self {
            random: Random::new(seed),
            now: 0,
            events: BTreeMap::new(),
            next_event: 0,
            machines: BTreeMap::new(),
            network: Network::default(),
            calls: BTreeMap::new(),
            next_call: 1,
            truth: Arc::new(Mutex::new(truth)),
            plan,
            fate,
            coverage: Coverage::default(),
            trace,
            start: Box::new(|machine, _, _| Err(format!("{} was not set up", machine.node))),
        }
    }

    /// Adds a machine with a formatted disk, and starts its process.
    pub(crate) fn add(&mut self, node: NodeId, disk: SimulatedDisk) {
        let clock = Clock::new(&mut self.random);
        self.machines.insert(node, Machine::new(node, disk, clock));
        self.start(node);
    }

    fn after(&mut self, delay: u64, event: Event) -> (u64, u64) {
        let key = (self.now + delay, self.next_event);
        self.events.insert(key, event);
        self.next_event += 1;
        key
    }

    pub(crate) fn heal_after(&mut self, delay: u64, heal: Heal) {
        self.after(delay, Event::Heal(heal));
    }

    pub(crate) fn fault_after(&mut self, delay: u64) {
        self.after(delay, Event::Fault);
    }

    pub(crate) fn later(&mut self, delay: u64, later: Later) {
        self.after(delay, Event::Later(later));
    }

    pub(crate) fn role(&self, node: NodeId) -> Option<&dyn Role> {
        self.machines[&node].role.as_deref()
    }

    pub(crate) fn lives(&self, node: NodeId) -> bool {
        self.role(node).is_some()
    }

    /// Whether a machine's process leads the volume's table.
    pub(crate) fn leads(&self, node: NodeId) -> bool {
        self.role(node).is_some_and(Role::leads)
    }

    /// Lets events happen until a time or until `done` says so; says whether it did.
    pub(crate) fn run_until(&mut self, end: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        while !done(self) {
            let Some(next) = self.events.first_entry().filter(|next| next.key().0 <= end) else { return false };
            let ((at, _), event) = next.remove_entry();
            self.now = at;
            self.truth.lock().now = at;
            self.happen(event);
        }
        true
    }

    fn happen(&mut self, event: Event) {
        self.coverage.events += 1;
        match event {
            Event::Arrive { from, to, packet } => self.arrive(from, to, packet),
            Event::Timer { node, life, timer } if self.machines[&node].life == life => self.timer(node, timer),
            Event::Wake { node, life } if self.machines[&node].life == life => self.drive(node),
            Event::Resume { node, life } if self.machines[&node].life == life => self.resume(node),
            // Of a former life.
            Event::Timer { .. } | Event::Wake { .. } | Event::Resume { .. } => {}
            Event::Expire { call } => {
                self.trace.note(self.now, || format!("call {call} has waited long enough"));
                self.end_call(call, Err(RpcError::Deadline.into()));
            }
            Event::Restart { node } => self.start(node),
            Event::Fault => (self.fate.strike)(self),
            Event::Later(later) => (self.fate.come)(self, later),
            Event::Heal(Heal::Link(pairs)) => self.network.cut.remove(&pairs),
            Event::Heal(Heal::Refused(pairs)) => self.network.refused.remove(&pairs),
            Event::Heal(Heal::Loss) if self.plan.on => self.network.loss_percent = self.plan.loss_percent,
            // All is well already.
            Event::Heal(Heal::Loss) => {}
        }
    }

    /// Time that a packet travels; `None` if it is lost.
    fn transit(&mut self, from: NodeId, to: NodeId) -> Option<u64> {
        if self.network.cut.contains((from, to)) || self.random.chance(self.network.loss_percent) {
            self.coverage.lost_packets += 1;
            return None;
        }
        let slow = self.random.chance(self.network.slow_percent);
        let late = to == VOLMGR && self.plan.on && self.random.one_in(LATE_ONE_IN);
        self.coverage.late_packets += u64::from(late);
        let most = if late {
            LATE_TRANSIT_NS_MAX
        } else if slow {
            SLOW_TRANSIT_NS_MAX
        } else {
            TRANSIT_NS_MAX
        };
        Some(self.random.below(most) + 20_000)
    }

    fn send(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        if !matches!(packet, Packet::Call(..) | Packet::Answer(..)) && self.random.chance(self.network.doubled_percent)
        {
            self.coverage.doubled_packets += 1;
            if let Some(delay) = self.transit(from, to) {
                self.after(delay, Event::Arrive { from, to, packet: packet.clone() });
            }
        }
        if let Some(delay) = self.transit(from, to) {
            self.after(delay, Event::Arrive { from, to, packet });
        }
    }

    fn arrive(&mut self, from: NodeId, to: NodeId, packet: Packet) {
        self.trace.packet(self.now, from, to, &packet);
        if let Packet::Answer(call, answer) = packet {
            return self.end_call(call, *answer);
        }
        let Some(machine) = self.machines.get_mut(&to) else { return };
        if machine.role.is_none() {
            if let Packet::Call(call, _) = packet {
                // The host is there, and nobody listens.
                self.answer(to, call, Box::new(Err(RpcError::Disconnected.into())), 0);
            }
            return;
        }
        if let Some(deferred) = &mut machine.deferred {
            return deferred.push(Deferred::Packet(from, packet));
        }
        if let Packet::Raft(generation, _) = &packet {
            machine.heard.insert(from, *generation);
        }
        let times = machine.clock.times(self.now);
        let is_snapshot = matches!(&packet, Packet::Call(_, request) if matches!(**request, Request::Snapshot { .. }));
        if let Some(role) = &mut machine.role {
            role.packet(times, from, packet);
        }
        if is_snapshot {
            (self.fate.snapshot_arrives)(self, to);
        }
        self.wake(to);
    }

    fn timer(&mut self, node: NodeId, timer: Timer) {
        let Some(machine) = self.machines.get_mut(&node) else { return };
        if let Some(deferred) = &mut machine.deferred {
            return deferred.push(Deferred::Timer(timer));
        }
        let times = machine.clock.times(self.now);
        if let Some(role) = &mut machine.role {
            role.timer(times, timer);
        }
        self.wake(node);
    }

    fn wake(&mut self, node: NodeId) {
        let Some(machine) = self.machines.get_mut(&node) else { return };
        if !std::mem::replace(&mut machine.woken, true) {
            let life = machine.life;
            let delay = self.random.below(WAKE_NS_MAX);
            self.after(delay, Event::Wake { node, life });
        }
    }

    fn drive(&mut self, node: NodeId) {
        let Some(machine) = self.machines.get_mut(&node) else { return };
        machine.woken = false;
        if machine.deferred.is_some() {
            return;
        }
        let times = machine.clock.times(self.now);
        let Some(role) = &mut machine.role else { return };
        let truth = Arc::clone(&self.truth);
        let installed = truth.lock().installed;
        let wishes = {
            let moment =
                Moment { times, random: &mut self.random, truth: &truth, disk: &machine.disk, before: machine.before };
            role.drive(moment)
        };
        if let Some(client) = client_of(node) {
            let until = |left| self.now + machine.clock.true_ns(left);
            let lease = role.lease().map(|(session, left)| Lease { session: session.0, until: until(left) });
            truth.lock().counts_on(client, lease);
        }
        if machine.disk.is_dead() {
            // What it did last never left the machine.
            self.coverage.deaths_in_operations += 1;
            return self.kill(node);
        }
        self.grant(node, wishes);
        if truth.lock().installed > installed {
            (self.fate.snapshot_installed)(self, node);
        }
    }

    fn grant(&mut self, node: NodeId, mut wishes: Vec<Wish>) {
        let dies = self.plan.dies_in_the_middle(&mut self.random, wishes.len());
        if let Some(count) = dies {
            wishes.truncate(count);
        }
        for wish in wishes {
            match wish {
                Wish::Send { to, packet } => self.send(node, to, packet),
                Wish::Call { ticket, to, request, timeout } => self.call(node, ticket, to, request, timeout),
                Wish::Reply { call, answer, after_ns } => self.answer(node, call, answer, after_ns),
                Wish::Arm { timer, after } => {
                    let machine = &self.machines[&node];
                    let (life, delay) = (machine.life, machine.clock.true_ns(after));
                    self.after(delay, Event::Timer { node, life, timer });
                }
                Wish::Recovered => {
                    (self.fate.recovered)(self, node);
                    return self.kill(node);
                }
                // Space and descriptors come back: whoever serves without them waits.
                Wish::Die(why) => return self.give_up(node, &why, false),
                Wish::GiveUp(why) => return self.give_up(node, &why, true),
            }
        }
        if dies.is_some() {
            self.coverage.deaths_between_effects += 1;
            self.kill(node);
        }
    }

    fn give_up(&mut self, node: NodeId, why: &str, may_lack: bool) {
        assert!(self.machines[&node].may_end(may_lack), "{node} ends although its disk has not failed: {why}");
        self.trace.note(self.now, || format!("{node} ends: {why}"));
        self.kill(node);
    }

    /// Ends a process. What its disk had not synced may be lost with the power.
    pub(crate) fn kill(&mut self, node: NodeId) {
        let delay = self.plan.restart_delay(&mut self.random);
        self.kill_for(node, delay);
    }

    /// Ends a process, which starts again after a time.
    pub(crate) fn kill_for(&mut self, node: NodeId, restart_delay: u64) {
        let power = self.random.chance(60);
        self.kill_by(node, power, restart_delay);
    }

    /// Ends a process with its machine's power.
    pub(crate) fn kill_by_power(&mut self, node: NodeId) {
        let delay = self.plan.restart_delay(&mut self.random);
        self.kill_by(node, true, delay);
    }

    fn kill_by(&mut self, node: NodeId, power: bool, restart_delay: u64) {
        self.end(node, power);
        self.after(restart_delay, Event::Restart { node });
        if METANODES.contains(&node) {
            // It will have heard of nobody's start, and would believe an older one.
            (self.fate.metanode_ended)(self);
        }
    }

    /// Ends a process for good.
    fn end(&mut self, node: NodeId, power: bool) {
        let Some(machine) = self.machines.get_mut(&node) else { return };
        machine.role = None;
        machine.life += 1;
        (machine.woken, machine.deferred, machine.pause_when_asking) = (false, None, None);
        machine.heard.clear();
        if power {
            machine.disk.lose_power(&mut self.random);
        } else {
            machine.disk.lose_process();
        }
        self.coverage.kills += 1;
        self.trace.note(self.now, || format!("{node} dies, power lost: {power}"));
        let to_it: Vec<(u64, NodeId)> =
            self.calls.iter().filter(|(_, open)| open.to == node).map(|(call, open)| (*call, open.caller)).collect();
        for (call, caller) in to_it {
            // Sometimes nobody is told: the host went with its process.
            if !power && let Some(delay) = self.transit(node, caller) {
                let packet = Packet::Answer(call, Box::new(Err(RpcError::Disconnected.into())));
                self.after(delay, Event::Arrive { from: node, to: caller, packet });
            }
        }
        self.calls.retain(|_, open| open.caller != node);
        if let Some(client) = client_of(node) {
            self.truth.lock().client_killed(client);
        }
    }

    /// What a process has sent to others of its kind, and is under way, is lost.
    pub(crate) fn lose_messages(&mut self, sender: NodeId) {
        let is_lost =
            |event: &Event| matches!(event, Event::Arrive { from, packet: Packet::Raft(..), .. } if *from == sender);
        self.events.retain(|_, event| !is_lost(event));
    }

    pub(crate) fn start(&mut self, node: NodeId) {
        let Some(machine) = self.machines.get_mut(&node).filter(|machine| machine.role.is_none()) else { return };
        machine.now = self.now;
        machine.before = machine.disk.counts();
        match (self.start)(machine, &mut self.random, &self.truth) {
            Ok(role) => {
                machine.role = Some(role);
                self.coverage.starts += 1;
                self.trace.note(self.now, || format!("{node} starts"));
                self.wake(node);
            }
            Err(why) => {
                self.trace.note(self.now, || format!("{node} does not start: {why}"));
                let died = machine.disk.is_dead();
                if self.plan.is_lost(node) && !died {
                    // Its disk is to be taken out: the node has no other.
                    self.coverage.lost_disks += 1;
                    return;
                }
                assert!(died || self.plan.on, "{node} does not start when all is well: {why}");
                self.kill(node);
            }
        }
    }

    /// Stops a process for a while; its clock goes on.
    pub(crate) fn pause(&mut self, node: NodeId, duration: u64) {
        let Some(machine) = self.machines.get_mut(&node) else { return };
        if machine.role.is_some() && machine.deferred.is_none() {
            machine.deferred = Some(Vec::new());
            let life = machine.life;
            self.after(duration, Event::Resume { node, life });
            self.coverage.pauses += 1;
        }
    }

    /// Stops a client's process for a while, once it has sent its next keep-alive.
    pub(crate) fn pause_when_asking(&mut self, node: NodeId, duration: u64) {
        if let Some(machine) = self.machines.get_mut(&node) {
            machine.pause_when_asking = Some(duration);
        }
    }

    /// Lets a paused process go on.
    pub(crate) fn resume(&mut self, node: NodeId) {
        let Some(machine) = self.machines.get_mut(&node) else { return };
        let times = machine.clock.times(self.now);
        let Some(deferred) = machine.deferred.take() else { return };
        if let Some(role) = &mut machine.role {
            for came in deferred {
                match came {
                    Deferred::Packet(from, packet) => role.packet(times, from, packet),
                    Deferred::Timer(timer) => role.timer(times, timer),
                }
            }
        }
        self.wake(node);
    }
}
