//! World of a simulated client: its clock, its tasks, and calls that become packets of the simulated network.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_client::CallFailed;
use holdfast_client::network::{Call, Network};
use holdfast_client::runtime::{Runtime, Work};
use holdfast_common::NodeId;
use holdfast_proto::control::Volume;
use holdfast_proto::data::{
    PutShardRequest, PutShardResponse, ReadShardsRequest, ReadShardsResponse, ReserveSpaceRequest, ReserveSpaceResponse,
};
use holdfast_proto::meta::{MutateRequest, MutateResponse, ReadRequest, ReadResponse};
use holdfast_transport::RpcError;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use crate::packet::{Answer, Request, Response, node_at};

/// Longest wait for the volume manager, as the real network has it.
const VOLMGR_TIMEOUT: Duration = Duration::from_secs(2);
/// An operator waits until a volume can be mounted.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(30);

/// A call that the world is to send.
pub(super) struct Outgoing {
    pub(super) number: u64,
    pub(super) to: NodeId,
    pub(super) request: Request,
    pub(super) timeout: Duration,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) now: Duration,
    pub(super) wall_ns: i64,
    pub(super) spawned: Vec<Work>,
    pub(super) outgoing: Vec<Outgoing>,
    /// Sleeps that began: their number and how long they are.
    pub(super) sleeps: Vec<(u64, Duration)>,
    next: u64,
    waiting: BTreeMap<u64, oneshot::Sender<Answer>>,
    sleeping: BTreeMap<u64, oneshot::Sender<()>>,
}

/// The seams of one client; clones are the same one.
#[derive(Clone)]
pub(super) struct Link {
    state: Arc<Mutex<State>>,
    volmgr: NodeId,
    volume: Arc<str>,
}

impl Link {
    pub(super) fn new(volmgr: NodeId, volume: &str) -> Self {
        Self { state: Arc::default(), volmgr, volume: volume.into() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Hands an answer to whoever waits for it.
    pub(super) fn answered(&self, number: u64, answer: Answer) {
        let waiting = self.state().waiting.remove(&number);
        if let Some(waiting) = waiting {
            // Whoever dropped the call wants no answer.
            let _ = waiting.send(answer);
        }
    }

    pub(super) fn slept(&self, number: u64) {
        let sleeping = self.state().sleeping.remove(&number);
        if let Some(sleeping) = sleeping {
            let _ = sleeping.send(());
        }
    }

    /// Asks the volume manager as an operator does; a volume, if the answer has one.
    pub(super) fn operate(&self, request: Request) -> Call<Option<Volume>> {
        let pick = |response| match response {
            Response::Volume(volume) => Some(Some(volume)),
            Response::VolumeDeleted => Some(None),
            _ => None,
        };
        self.call(self.volmgr, request, OPERATOR_TIMEOUT, pick)
    }

    /// A call is under way when this returns, whether or not its future is polled.
    fn call<T: Send + 'static>(
        &self,
        to: NodeId,
        request: Request,
        timeout: Duration,
        pick: impl FnOnce(Response) -> Option<T> + Send + 'static,
    ) -> Call<T> {
        let link = self.clone();
        Box::pin(async move {
            let answered = {
                let mut state = link.state();
                let (sender, answered) = oneshot::channel();
                let number = state.next;
                state.next += 1;
                state.waiting.insert(number, sender);
                state.outgoing.push(Outgoing { number, to, request, timeout });
                answered
            };
            let answer = answered.await.map_err(|_| RpcError::Disconnected)?;
            if let Ok(Response::Denied(why)) = answer {
                return Err(CallFailed::Volmgr(why));
            }
            pick(answer?).ok_or(RpcError::Malformed("an answer of another kind").into())
        })
    }
}

impl Runtime for Link {
    fn now(&self) -> Duration {
        self.state().now
    }

    fn wall_ns(&self) -> i64 {
        self.state().wall_ns
    }

    fn spawn(&self, work: Work) {
        self.state().spawned.push(work);
    }

    fn sleep(&self, duration: Duration) -> Work {
        let mut state = self.state();
        let (sender, slept) = oneshot::channel();
        let number = state.next;
        state.next += 1;
        state.sleeping.insert(number, sender);
        state.sleeps.push((number, duration));
        Box::pin(async move {
            let _ = slept.await;
        })
    }
}

impl Network for Link {
    fn mutate(&self, to: SocketAddr, request: MutateRequest, timeout: Duration) -> Call<MutateResponse> {
        self.call(node_at(to), Request::Mutate(request), timeout, Response::mutated)
    }

    fn read(&self, to: SocketAddr, request: ReadRequest, timeout: Duration) -> Call<ReadResponse> {
        self.call(node_at(to), Request::Read(request), timeout, Response::read)
    }

    fn put(
        &self,
        to: SocketAddr,
        request: PutShardRequest,
        payload: Bytes,
        timeout: Duration,
    ) -> Call<PutShardResponse> {
        self.call(node_at(to), Request::Put(request, payload), timeout, Response::put)
    }

    fn fetch(
        &self,
        to: SocketAddr,
        request: ReadShardsRequest,
        timeout: Duration,
    ) -> Call<(ReadShardsResponse, Bytes)> {
        self.call(node_at(to), Request::Fetch(request), timeout, Response::fetched)
    }

    fn reserve(&self, to: SocketAddr, request: ReserveSpaceRequest, timeout: Duration) -> Call<ReserveSpaceResponse> {
        self.call(node_at(to), Request::Reserve(request), timeout, Response::reserved)
    }

    fn volume(&self) -> Call<Volume> {
        let request = Request::ShowVolume(self.volume.to_string());
        self.call(self.volmgr, request, VOLMGR_TIMEOUT, Response::volume)
    }
}
