//! Frames on their way out of one connection: queued by anybody, written by one task, several per system call.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message;
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use crate::error::RpcError;
use crate::frame::{FIXED_BYTES, Head, Kind};
use crate::limits::{BODY_BYTES_MAX, HEADER_BYTES_MAX, WRITE_SLICES_MAX};

/// Encoded headers up to this are copied behind the fixed header rather than written as a piece of their own.
const INLINE_HEADER_BYTES: usize = 16 << 10;

/// A frame ready to be queued.
pub(crate) struct Outgoing<T> {
    head: Bytes,
    header: Bytes,
    body: Vec<Bytes>,
    /// Dropped once the frame was handed to the kernel.
    ticket: Option<T>,
}

impl<T> Outgoing<T> {
    /// Encodes a frame of a message.
    pub(crate) fn message(mut head: Head, message: &impl Message, body: Vec<Bytes>) -> Result<Self, RpcError> {
        let encoded_bytes = message.encoded_len();
        fit(&mut head, encoded_bytes, &body)?;
        let mut bytes = BytesMut::with_capacity(FIXED_BYTES + encoded_bytes);
        bytes.put_slice(&head.encode());
        message.encode_raw(&mut bytes);
        Ok(Self { head: bytes.freeze(), header: Bytes::new(), body, ticket: None })
    }

    /// Makes a frame of an encoded header.
    pub(crate) fn encoded(mut head: Head, header: Bytes, body: Vec<Bytes>) -> Result<Self, RpcError> {
        fit(&mut head, header.len(), &body)?;
        if header.len() > INLINE_HEADER_BYTES {
            return Ok(Self { head: Bytes::copy_from_slice(&head.encode()), header, body, ticket: None });
        }
        let mut bytes = BytesMut::with_capacity(FIXED_BYTES + header.len());
        bytes.put_slice(&head.encode());
        bytes.put_slice(&header);
        Ok(Self { head: bytes.freeze(), header: Bytes::new(), body, ticket: None })
    }

    /// A frame of nothing but its fixed header.
    pub(crate) fn bare(kind: Kind, method: u16, stream: u64) -> Self {
        let head = Head { kind, method, stream, header_bytes: 0, body_bytes: 0, deadline_ms: 0 };
        Self { head: Bytes::copy_from_slice(&head.encode()), header: Bytes::new(), body: Vec::new(), ticket: None }
    }

    /// Ties something to the frame that is dropped when it was written.
    pub(crate) fn with_ticket(mut self, ticket: T) -> Self {
        self.ticket = Some(ticket);
        self
    }
}

/// Fills in the lengths, if they are allowed.
fn fit(head: &mut Head, header_bytes: usize, body: &[Bytes]) -> Result<(), RpcError> {
    let body_bytes = body.iter().map(Bytes::len).fold(0, usize::saturating_add);
    match (u32::try_from(header_bytes), u32::try_from(body_bytes)) {
        (Ok(header), Ok(body)) if header <= HEADER_BYTES_MAX && body <= BODY_BYTES_MAX => {
            (head.header_bytes, head.body_bytes) = (header, body);
            Ok(())
        }
        _ => Err(RpcError::TooLarge { header_bytes, body_bytes }),
    }
}

/// Why a frame was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    Full,
    Closed,
}

/// The queue of one connection.
pub(crate) struct Outbox<T> {
    queue: Mutex<Queue<T>>,
    wake: Notify,
}

struct Queue<T> {
    pieces: VecDeque<Piece<T>>,
    frames: usize,
    closed: bool,
}

enum Piece<T> {
    Bytes(Bytes),
    /// The frame before ends here.
    End(Option<T>),
}

impl<T> Outbox<T> {
    pub(crate) fn new() -> Self {
        Self { queue: Mutex::new(Queue { pieces: VecDeque::new(), frames: 0, closed: false }), wake: Notify::new() }
    }

    /// Queues a frame unless `frames_max` are waiting.
    pub(crate) fn push(&self, frame: Outgoing<T>, frames_max: usize) -> Result<(), PushError> {
        {
            let mut queue = self.queue.lock();
            if queue.closed {
                return Err(PushError::Closed);
            }
            if queue.frames >= frames_max {
                return Err(PushError::Full);
            }
            queue.frames += 1;
            queue.pieces.push_back(Piece::Bytes(frame.head));
            queue
                .pieces
                .extend(std::iter::once(frame.header).chain(frame.body).filter(|b| !b.is_empty()).map(Piece::Bytes));
            queue.pieces.push_back(Piece::End(frame.ticket));
        }
        self.wake.notify_one();
        Ok(())
    }

    /// Refuses frames from now on and drops those that wait.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            queue.frames = 0;
            std::mem::take(&mut queue.pieces)
        };
        drop(dropped);
        self.wake.notify_one();
    }

    /// Writes what is queued until the connection fails or the outbox is closed.
    pub(crate) async fn write_to(&self, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut pieces = VecDeque::new();
        loop {
            let closed = {
                let mut queue = self.queue.lock();
                std::mem::swap(&mut queue.pieces, &mut pieces);
                queue.closed
            };
            if pieces.is_empty() {
                if closed {
                    return Ok(());
                }
                self.wake.notified().await;
                // Whoever else is ready now gets to queue its frame into the same system call.
                tokio::task::yield_now().await;
                continue;
            }
            self.write_pieces(&mut pieces, to).await?;
        }
    }

    async fn write_pieces(
        &self,
        pieces: &mut VecDeque<Piece<T>>,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        while !pieces.is_empty() {
            let written = {
                let mut slices = [IoSlice::new(&[]); WRITE_SLICES_MAX];
                let bytes = pieces.iter().filter_map(|piece| match piece {
                    Piece::Bytes(bytes) => Some(bytes),
                    Piece::End(_) => None,
                });
                let mut used = 0;
                for (slice, bytes) in slices.iter_mut().zip(bytes) {
                    *slice = IoSlice::new(bytes);
                    used += 1;
                }
                match used {
                    0 => 0,
                    _ => match to.write_vectored(&slices[..used]).await? {
                        0 => return Err(io::ErrorKind::WriteZero.into()),
                        written => written,
                    },
                }
            };
            let ended = advance(pieces, written);
            if ended > 0 {
                let mut queue = self.queue.lock();
                queue.frames = queue.frames.saturating_sub(ended);
            }
        }
        Ok(())
    }
}

/// Drops what was written from the front; how many frames ended.
fn advance<T>(pieces: &mut VecDeque<Piece<T>>, mut written: usize) -> usize {
    let mut ended = 0;
    while let Some(front) = pieces.front_mut() {
        match front {
            Piece::Bytes(bytes) if bytes.len() > written => {
                bytes.advance(written);
                break;
            }
            Piece::Bytes(bytes) => written -= bytes.len(),
            Piece::End(ticket) => {
                drop(ticket.take());
                ended += 1;
            }
        }
        pieces.pop_front();
    }
    ended
}
