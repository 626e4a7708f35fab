//! Around the core: the lock, the clock, the timer, and the performing of effects.
//!
//! Whoever brings an input steps the core under the lock, lets go of it, and performs the effects. What a caller's step
//! sends is carried on by the caller's own future: no other task has to be woken for it. If that future is dropped, what is
//! under way goes on as a task of the runtime, for a mutation that was sent must be answered (R8).

use crate::Error;
use crate::core::Core;
use crate::core::effects::{Answer, Call, Effects, Input, Note, OpId, PutChunk, Reserve, Response, Send, Wire};
use crate::core::time::Moment;
use crate::network::Network;
use crate::runtime::{Runtime, Work, within};
use bytes::Bytes;
use holdfast_common::checksum::ShardPlace;
use holdfast_common::{Ascending, ChunkId, Incarnation, VolumeId};
use holdfast_erasure::encode;
use holdfast_proto::data::{PutShardRequest, ReserveSpaceRequest, ShardHeader};
use holdfast_proto::meta::ChunkRecord;
use parking_lot::Mutex;
use smallvec::SmallVec;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};

/// Longest sleep of the timer: only to notice that the mount has ended.
const SLEEP_MAX: Duration = Duration::from_secs(1);

type Outcome = Result<Answer, Error>;
/// Mostly one.
type Few<T> = SmallVec<[T; 1]>;

struct Inner {
    core: Core,
    waiting: Ascending<OpId, oneshot::Sender<Outcome>>,
    next_op: u64,
    /// When the timer will step the core.
    armed: Option<Moment>,
}

/// What a step brought. Outcomes and the timer were looked at under the lock.
struct Stepped {
    effects: Effects,
    told: Few<(oneshot::Sender<Outcome>, Outcome)>,
    wakes_timer: bool,
}

impl Inner {
    fn take(&mut self, mut effects: Effects) -> Stepped {
        let outcomes = std::mem::take(&mut effects.outcomes);
        let mut told = Few::new();
        for (op, outcome) in outcomes {
            if let Some(waiting) = self.waiting.remove(&op) {
                told.push((waiting, outcome));
            }
        }
        // It is woken only if it would sleep too long.
        let wakes_timer = effects.wake.is_some_and(|wake| self.armed.is_none_or(|armed| wake < armed));
        if wakes_timer {
            self.armed = effects.wake;
        }
        Stepped { effects, told, wakes_timer }
    }
}

/// The core of a mount, with what it takes to run it.
pub(crate) struct Shell {
    inner: Mutex<Inner>,
    pub(crate) network: Arc<dyn Network>,
    volume: VolumeId,
    incarnation: Incarnation,
    timer: Notify,
    pub(crate) runtime: Arc<dyn Runtime>,
}

impl Shell {
    /// Starts the core: its first effects are performed, and its timer runs until the shell is dropped.
    pub(crate) fn start(
        make: impl FnOnce(Moment) -> (Core, Effects),
        (network, runtime): (Arc<dyn Network>, Arc<dyn Runtime>),
        volume: VolumeId,
        incarnation: Incarnation,
    ) -> Arc<Self> {
        let (core, effects) = make(moment(&*runtime));
        let inner = Inner { core, waiting: Ascending::default(), next_op: 0, armed: None };
        let shell =
            Arc::new(Self { inner: Mutex::new(inner), network, volume, incarnation, timer: Notify::new(), runtime });
        shell.runtime.spawn(Box::pin(run_timer(Arc::downgrade(&shell))));
        let stepped = shell.inner.lock().take(effects);
        shell.spawn_all(stepped);
        shell
    }

    pub(crate) fn now(&self) -> Moment {
        moment(&*self.runtime)
    }

    /// Looks at the core, or changes something that has no effects.
    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Core, Moment) -> T) -> T {
        let mut inner = self.inner.lock();
        let now = self.now();
        look(&mut inner.core, now)
    }

    /// Takes an input in; what is to be done is done by tasks.
    pub(crate) fn put_in(self: &Arc<Self>, input: Input) {
        let stepped = self.step(input);
        self.spawn_all(stepped);
    }

    /// Begins an operation, now, and answers what waits for its outcome. Dropped, it is abandoned, and what it has sent goes on.
    /// No `async`: the future would hold the call as long as it waits, and whatever it is put into would be moved with it.
    pub(crate) fn run(self: &Arc<Self>, call: Call) -> Running<'_> {
        let (op, begun, stepped) = {
            let mut inner = self.inner.lock();
            let op = OpId(inner.next_op);
            inner.next_op += 1;
            let now = self.now();
            let mut effects = inner.core.step(now, Input::Begin { op, call });
            let at = effects.outcomes.iter().position(|(ended, _)| *ended == op);
            let begun = match at.map(|at| effects.outcomes.swap_remove(at).1) {
                Some(outcome) => Err(outcome),
                None => {
                    let (sender, receiver) = oneshot::channel();
                    inner.waiting.insert(op, sender);
                    Ok(receiver)
                }
            };
            (op, begun, inner.take(effects))
        };
        let works = self.perform(stepped);
        let (ended, receiver) = match begun {
            Ok(receiver) => (None, Some(receiver)),
            Err(outcome) => (Some(outcome), None),
        };
        Running {
            ended,
            waits: Waits { shell: self, op, receiver },
            carried: Carried { works, runtime: &self.runtime },
        }
    }

    fn step(&self, input: Input) -> Stepped {
        let mut inner = self.inner.lock();
        // Under the lock, so that a later step has a later time.
        let now = self.now();
        let effects = inner.core.step(now, input);
        inner.take(effects)
    }

    fn spawn_all(self: &Arc<Self>, stepped: Stepped) {
        for work in self.perform(stepped) {
            self.runtime.spawn(work);
        }
    }

    /// Tells outcomes, wakes the timer, and answers what is to be carried on.
    fn perform(self: &Arc<Self>, stepped: Stepped) -> Few<Work> {
        let Stepped { effects, told, wakes_timer } = stepped;
        effects.notes.iter().for_each(say);
        if wakes_timer {
            self.timer.notify_one();
        }
        for (waiting, outcome) in told {
            if let Err(outcome) = waiting.send(outcome) {
                self.put_in(Input::Undelivered { outcome });
            }
        }
        let mut works: Few<Work> = Few::new();
        for (at, send) in effects.sends.into_iter().enumerate() {
            let work = Box::pin(Arc::clone(self).send(send));
            if at < effects.own_sends {
                works.push(work);
            } else {
                // Not the caller's: a caller that is not polled must not hold up a keep-alive.
                self.runtime.spawn(work);
            }
        }
        for put in effects.puts {
            // Encoding takes a core for a while: never in the thread that serves a caller.
            self.runtime.spawn(Box::pin(Arc::clone(self).put(put)));
        }
        if let Some(reserve) = effects.reserve {
            self.runtime.spawn(Box::pin(Arc::clone(self).reserve(reserve)));
        }
        if effects.ask_volmgr {
            let shell = Arc::clone(self);
            self.runtime.spawn(Box::pin(async move {
                let answer = shell.network.volume().await;
                let endpoints = answer.map(|volume| volume.metanodes).unwrap_or_default();
                shell.put_in(Input::Endpoints(endpoints));
            }));
        }
        works
    }

    /// Sends a metadata request, takes the answer in, and goes on with what that brings.
    async fn send(self: Arc<Self>, send: Send) {
        let mut next = Some(send);
        while let Some(Send { attempt, to, request, timeout }) = next.take() {
            let answer = match request {
                Wire::Mutate(request) => {
                    let answer = self.network.mutate(to, *request, timeout).await;
                    answer.map(|response| Response::Mutate(Box::new(response)))
                }
                Wire::Read(request) => {
                    let answer = self.network.read(to, *request, timeout).await;
                    answer.map(|response| Response::Read(Box::new(response)))
                }
            };
            let mut stepped = self.step(Input::Answered { attempt, answer });
            if stepped.effects.sends.len() == 1 && stepped.effects.own_sends == 1 {
                next = stepped.effects.sends.pop();
            }
            self.spawn_all(stepped);
        }
    }

    /// Encodes a chunk and sends all its shards at once.
    async fn put(self: Arc<Self>, put: PutChunk) {
        let shards = encode(&put.geometry, &put.pieces);
        let (write, chunk, timeout) = (put.write, ChunkId(put.record.chunk), put.timeout);
        let mut works: Few<Work> = Few::with_capacity(put.members.len());
        for ((shard, payload), member) in (0u8..).zip(shards).zip(&put.members) {
            let header = self.header(&put.record, shard, &payload);
            let request = PutShardRequest { disk: member.disk.0, header: Some(header), session: put.session.0 };
            let (shell, to) = (Arc::clone(&self), member.address);
            works.push(Box::pin(async move {
                let started = shell.now();
                let answer = shell.network.put(to, request, payload, timeout).await;
                let elapsed = shell.now().since(started);
                shell.put_in(Input::Put { write, chunk, shard, elapsed, answer });
            }));
        }
        let mut carried = Carried { works, runtime: &self.runtime };
        std::future::poll_fn(|context| carried.poll(context)).await;
    }

    fn header(&self, record: &ChunkRecord, shard: u8, payload: &Bytes) -> ShardHeader {
        let place = ShardPlace { volume: self.volume, chunk: ChunkId(record.chunk), shard };
        ShardHeader {
            volume: self.volume.0,
            incarnation: self.incarnation.0,
            chunk: record.chunk,
            nonce: record.nonce,
            group: record.group,
            epoch: record.epoch,
            shard: u32::from(shard),
            data_shards: record.data_shards,
            parity_shards: record.parity_shards,
            slots: record.slots.clone(),
            chunk_length_bytes: record.length_bytes,
            shard_length_bytes: record.shard_length_bytes,
            page_checksums: place.page_checksums(0, payload).into(),
        }
    }

    /// Asks every datanode for reservations.
    async fn reserve(self: Arc<Self>, reserve: Reserve) {
        let lease_ms = u32::try_from(reserve.lease.as_millis()).unwrap_or(u32::MAX);
        let calls = reserve.disks.into_iter().map(|(address, disks)| {
            let (volume, session) = (self.volume.0, reserve.session.0);
            let request = ReserveSpaceRequest { session, disks, lease_ms, volume };
            let call = self.network.reserve(address, request, reserve.timeout);
            async move { (address.ip(), call.await) }
        });
        let mut granted = Vec::new();
        for (host, answer) in crate::task::all(calls).await {
            let grants = answer.map(|response| response.grants).unwrap_or_default();
            granted.extend(grants.into_iter().map(|grant| (host, grant)));
        }
        self.put_in(Input::Granted(granted));
    }
}

fn moment(runtime: &dyn Runtime) -> Moment {
    Moment(0) + runtime.now()
}

/// Steps the core whenever it wants to be, until the mount has ended.
async fn run_timer(shell: Weak<Shell>) {
    loop {
        let Some(strong) = shell.upgrade() else { return };
        let (wake, now) = {
            let inner = strong.inner.lock();
            (inner.armed, strong.now())
        };
        if wake.is_some_and(|wake| wake <= now) {
            strong.inner.lock().armed = None;
            strong.put_in(Input::Tick);
            continue;
        }
        let sleep = wake.map_or(SLEEP_MAX, |wake| wake.since(now).min(SLEEP_MAX));
        let notified = async {
            strong.timer.notified().await;
        };
        within(&*strong.runtime, sleep, notified).await;
    }
}

fn say(note: &Note) {
    match note {
        Note::Lost { inode, bytes, error } => tracing::warn!(%inode, bytes, %error, "written data is lost"),
        Note::SessionLost(session) => {
            tracing::warn!(%session, "the session was closed by the cluster; a new one is opened");
        }
        Note::SessionUnsure(session) => {
            tracing::warn!(%session, "the session's lease has run out without an answer; it is tried on");
        }
        Note::Again(reason) => tracing::debug!(reason, "a request is tried again"),
    }
}

/// An operation under way, with what its first step sent.
pub(crate) struct Running<'a> {
    /// It had ended when it was begun.
    ended: Option<Outcome>,
    waits: Waits<'a>,
    carried: Carried<'a>,
}

impl Future for Running<'_> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        if let Some(outcome) = self.ended.take() {
            return Poll::Ready(outcome);
        }
        let _ = self.carried.poll(context);
        let told = self.waits.poll(context);
        told.map(|told| told.unwrap_or_else(|_| Err(Error::TimedOut("the mount has ended".to_owned()))))
    }
}

/// A caller that waits. Dropped, its operation is abandoned; an outcome that is on its way to it is given back.
struct Waits<'a> {
    shell: &'a Arc<Shell>,
    op: OpId,
    /// Gone when it was told.
    receiver: Option<oneshot::Receiver<Outcome>>,
}

impl Waits<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Outcome, oneshot::error::RecvError>> {
        let Some(receiver) = &mut self.receiver else { return Poll::Pending };
        let told = Pin::new(receiver).poll(context);
        if told.is_ready() {
            self.receiver = None;
        }
        told
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let Some(mut receiver) = self.receiver.take() else { return };
        let stepped = {
            let mut inner = self.shell.inner.lock();
            let now = self.shell.now();
            // One that is not there any more was taken by a step that has the outcome: it is sent, or will fail to be.
            inner.waiting.remove(&self.op).map(|_| {
                let effects = inner.core.step(now, Input::Abandon { op: self.op });
                inner.take(effects)
            })
        };
        if let Some(stepped) = stepped {
            return self.shell.spawn_all(stepped);
        }
        receiver.close();
        if let Ok(outcome) = receiver.try_recv() {
            self.shell.put_in(Input::Undelivered { outcome });
        }
    }
}

/// Works that run as long as this is polled, and then by themselves.
struct Carried<'a> {
    works: Few<Work>,
    runtime: &'a Arc<dyn Runtime>,
}

impl Carried<'_> {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.works.retain(|work| work.as_mut().poll(context).is_pending());
        if self.works.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Carried<'_> {
    fn drop(&mut self) {
        for work in self.works.drain(..) {
            self.runtime.spawn(work);
        }
    }
}
