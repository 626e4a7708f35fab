//! A service that does what the method says.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use holdfast_transport::{BODY_BYTES_MAX, Call, Refusal, Reply, Service};
use prost::Message;
use tokio::sync::Notify;

pub(crate) const ECHO: u16 = 1;
pub(crate) const HANG: u16 = 2;
pub(crate) const PANIC: u16 = 3;
pub(crate) const LARGE: u16 = 4;
pub(crate) const GATED: u16 = 5;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct Number {
    #[prost(uint64, tag = "1")]
    pub(crate) value: u64,
}

/// Echoes, hangs, panics, as the method says.
#[derive(Default)]
pub(crate) struct Probe {
    pub(crate) started: AtomicUsize,
    pub(crate) finished: AtomicUsize,
    pub(crate) gate: Notify,
    /// Keeps the wakers of what hangs: nothing notifies it.
    never: Notify,
    pub(crate) one_ways: parking_lot::Mutex<Vec<u64>>,
}

impl Service for Probe {
    async fn call(&self, mut call: Call) -> Result<Reply, Refusal> {
        self.started.fetch_add(1, Ordering::SeqCst);
        let number: Number = call.message()?;
        let reply = match call.method {
            ECHO => Reply::with_body(
                &number,
                vec![call.body.slice(..call.body.len() / 2), call.body.slice(call.body.len() / 2..)],
            ),
            HANG => {
                self.never.notified().await;
                Reply::message(&number)
            }
            PANIC => panic!("as asked"),
            LARGE => {
                Reply::with_body(&number, vec![Bytes::from(vec![1; BODY_BYTES_MAX as usize]), Bytes::from_static(b"x")])
            }
            GATED => {
                self.gate.notified().await;
                Reply::message(&number)
            }
            _ => return Err(Refusal::UnknownMethod),
        };
        self.finished.fetch_add(1, Ordering::SeqCst);
        Ok(reply)
    }

    fn one_way(&self, _method: u16, header: Bytes, _body: Bytes) {
        self.one_ways.lock().push(Number::decode(header).unwrap().value);
    }
}
