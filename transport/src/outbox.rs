//! Frames on their way out of one connection: queued by anybody, written by one at a time.
//!
//! A frame that is alone (nobody else waits on the connection) is written by whoever queues it, which saves two task
//! switches; otherwise the connection's writing task gathers what is ready into few system calls. Who may write is
//! said by `busy`: set by who takes the role, cleared under the lock by who finds the queue empty.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use prost::Message;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::Notify;

use crate::error::RpcError;
use crate::frame::{FIXED_BYTES, Head, Kind};
use crate::limits::{BODY_BYTES_MAX, HEADER_BYTES_MAX, WRITE_SLICES_MAX};

/// Longest encoded header that is copied behind the fixed header rather than written as a piece of its own.
const INLINE_HEADER_BYTES: usize = 16 << 10;

/// A frame ready to be queued.
pub(crate) struct Outgoing<T> {
    head: Bytes,
    header: Bytes,
    body: Vec<Bytes>,
    bytes: usize,
    /// Dropped once the frame was handed to the kernel.
    ticket: Option<T>,
}

/// An encoded header behind room for the fixed header of its frame: it is sent from where it was encoded.
#[derive(Clone, Debug)]
pub(crate) struct Framed(BytesMut);

impl Framed {
    /// Encodes a message.
    pub(crate) fn message(message: &impl Message) -> Self {
        let mut framed = Self::room(message.encoded_len());
        message.encode_raw(&mut framed.0);
        framed
    }

    /// Copies what is encoded already.
    pub(crate) fn encoded(header: &[u8]) -> Self {
        let mut framed = Self::room(header.len());
        framed.0.put_slice(header);
        framed
    }

    fn room(header_bytes: usize) -> Self {
        let mut room = BytesMut::with_capacity(FIXED_BYTES + header_bytes);
        room.put_bytes(0, FIXED_BYTES);
        Self(room)
    }
}

impl<T> Outgoing<T> {
    /// A frame of an encoded header.
    pub(crate) fn framed(mut head: Head, Framed(mut frame): Framed, body: Vec<Bytes>) -> Result<Self, RpcError> {
        let bytes = fit(&mut head, frame.len() - FIXED_BYTES, &body)?;
        frame[..FIXED_BYTES].copy_from_slice(&head.encode());
        Ok(Self { head: frame.freeze(), header: Bytes::new(), body, bytes, ticket: None })
    }

    /// The same of a header that somebody else holds: a long one is not copied.
    pub(crate) fn encoded(mut head: Head, header: Bytes, body: Vec<Bytes>) -> Result<Self, RpcError> {
        if header.len() <= INLINE_HEADER_BYTES {
            return Self::framed(head, Framed::encoded(&header), body);
        }
        let bytes = fit(&mut head, header.len(), &body)?;
        let head = Bytes::copy_from_slice(&head.encode());
        Ok(Self { head, header, body, bytes, ticket: None })
    }

    /// A frame of nothing but its fixed header.
    pub(crate) fn bare(kind: Kind, method: u16, stream: u64) -> Self {
        let head = Head { kind, method, stream, header_bytes: 0, body_bytes: 0, deadline_ms: 0 };
        let head = Bytes::copy_from_slice(&head.encode());
        Self { head, header: Bytes::new(), body: Vec::new(), bytes: FIXED_BYTES, ticket: None }
    }

    /// Ties something to the frame that is dropped when it was written.
    pub(crate) fn with_ticket(mut self, ticket: T) -> Self {
        self.ticket = Some(ticket);
        self
    }
}

/// Fills in the lengths, if they are allowed. Answers the length of the whole frame.
fn fit(head: &mut Head, header_bytes: usize, body: &[Bytes]) -> Result<usize, RpcError> {
    let body_bytes = body.iter().map(Bytes::len).fold(0, usize::saturating_add);
    match (u32::try_from(header_bytes), u32::try_from(body_bytes)) {
        (Ok(header), Ok(body)) if header <= HEADER_BYTES_MAX && body <= BODY_BYTES_MAX => {
            (head.header_bytes, head.body_bytes) = (header, body);
            Ok(FIXED_BYTES + header_bytes + body_bytes)
        }
        _ => Err(RpcError::TooLarge { header_bytes, body_bytes }),
    }
}

/// Bound of a queue, above which a further frame is refused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueMax {
    frames: usize,
    bytes: usize,
}

impl QueueMax {
    /// For frames that something else bounds.
    pub(crate) const NONE: Self = Self { frames: usize::MAX, bytes: usize::MAX };

    /// A bound for frames of a few bytes.
    pub(crate) fn frames(frames: usize) -> Self {
        Self { frames, ..Self::NONE }
    }

    /// A frame that finds nothing waiting is taken, however long it is.
    pub(crate) fn frames_and_bytes(frames: usize, bytes: usize) -> Self {
        Self { frames, bytes }
    }
}

/// Reason why a frame was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PushError {
    Full,
    Closed,
}

/// Queue of one connection.
pub(crate) struct Outbox<T> {
    queue: Mutex<Queue<T>>,
    /// Passes the role of writing to the task.
    hand_over: Notify,
}

struct Queue<T> {
    pieces: VecDeque<Piece<T>>,
    /// An empty deque whose memory is used again.
    spare: VecDeque<Piece<T>>,
    frames: usize,
    /// Of these frames, what the kernel has not taken yet.
    bytes: usize,
    busy: bool,
    /// `None` once closed.
    writer: Option<Arc<OwnedWriteHalf>>,
}

enum Piece<T> {
    Bytes(Bytes),
    /// The frame before ends here.
    End(Option<T>),
}

impl<T> Outbox<T> {
    pub(crate) fn new(writer: OwnedWriteHalf) -> Self {
        let queue = Queue {
            pieces: VecDeque::new(),
            spare: VecDeque::new(),
            frames: 0,
            bytes: 0,
            busy: false,
            writer: Some(Arc::new(writer)),
        };
        Self { queue: Mutex::new(queue), hand_over: Notify::new() }
    }

    /// Queues a frame unless as much as `max` is waiting. `alone` says that no other frame is expected soon.
    pub(crate) fn push(&self, frame: Outgoing<T>, max: QueueMax, alone: bool) -> Result<(), PushError> {
        let mut queue = self.queue.lock();
        let Some(writer) = &queue.writer else { return Err(PushError::Closed) };
        let writer = (alone && !queue.busy).then(|| Arc::clone(writer));
        let bytes = queue.bytes.saturating_add(frame.bytes);
        if queue.frames >= max.frames || (queue.bytes > 0 && bytes > max.bytes) {
            return Err(PushError::Full);
        }
        (queue.frames, queue.bytes) = (queue.frames + 1, bytes);
        queue.pieces.push_back(Piece::Bytes(frame.head));
        let payload = std::iter::once(frame.header).chain(frame.body);
        queue.pieces.extend(payload.filter(|bytes| !bytes.is_empty()).map(Piece::Bytes));
        queue.pieces.push_back(Piece::End(frame.ticket));
        if std::mem::replace(&mut queue.busy, true) {
            return Ok(());
        }
        match writer {
            Some(writer) => {
                let pieces = queue.take_pieces();
                drop(queue);
                self.write_now(pieces, &writer);
            }
            None => {
                drop(queue);
                self.hand_over.notify_one();
            }
        }
        Ok(())
    }

    /// Writes as much as goes without waiting and leaves the rest to the task.
    fn write_now(&self, mut pieces: VecDeque<Piece<T>>, writer: &OwnedWriteHalf) {
        let (mut ended, mut taken) = (0, 0);
        while !pieces.is_empty() {
            // Errors are met again by the task, which ends the connection.
            let Ok(written) = write_some(&pieces, writer) else { break };
            ended += advance(&mut pieces, written);
            taken += written;
        }
        let mut queue = self.queue.lock();
        queue.settle(ended, taken);
        if queue.writer.is_none() {
            drop(queue);
            return;
        }
        if pieces.is_empty() {
            queue.spare = pieces;
        } else {
            pieces.append(&mut queue.pieces);
            queue.pieces = pieces;
        }
        queue.busy = !queue.pieces.is_empty();
        if queue.busy {
            drop(queue);
            self.hand_over.notify_one();
        }
    }

    /// Refuses frames from now on, drops those that wait, and lets go of the socket.
    pub(crate) fn close(&self) {
        let dropped = {
            let mut queue = self.queue.lock();
            (queue.frames, queue.bytes) = (0, 0);
            (queue.writer.take(), std::mem::take(&mut queue.pieces))
        };
        drop(dropped);
        self.hand_over.notify_one();
    }

    /// Body of the writing task: writes what it is given until the connection fails or the outbox is closed.
    pub(crate) async fn write(&self) -> io::Result<()> {
        loop {
            self.hand_over.notified().await;
            // Whoever else is ready now gets to queue its frame into the same system call.
            tokio::task::yield_now().await;
            loop {
                let (mut pieces, writer) = {
                    let mut queue = self.queue.lock();
                    let Some(writer) = queue.writer.clone() else { return Ok(()) };
                    if queue.pieces.is_empty() {
                        queue.busy = false;
                        break;
                    }
                    (queue.take_pieces(), writer)
                };
                self.write_all(&mut pieces, &writer).await?;
                self.queue.lock().spare = pieces;
            }
        }
    }

    async fn write_all(&self, pieces: &mut VecDeque<Piece<T>>, writer: &OwnedWriteHalf) -> io::Result<()> {
        while !pieces.is_empty() {
            match write_some(pieces, writer) {
                Ok(written) => {
                    let ended = advance(pieces, written);
                    self.queue.lock().settle(ended, written);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => writer.writable().await?,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl<T> Queue<T> {
    /// Frames that ended and bytes that the kernel took wait no more. The queue may have been closed meanwhile.
    fn settle(&mut self, ended: usize, written: usize) {
        self.frames = self.frames.saturating_sub(ended);
        self.bytes = self.bytes.saturating_sub(written);
    }

    fn take_pieces(&mut self) -> VecDeque<Piece<T>> {
        let spare = std::mem::take(&mut self.spare);
        std::mem::replace(&mut self.pieces, spare)
    }
}

/// One system call's worth from the front, without waiting; 0 if there is nothing but ends of frames.
fn write_some<T>(pieces: &VecDeque<Piece<T>>, writer: &OwnedWriteHalf) -> io::Result<usize> {
    let mut bytes = pieces.iter().filter_map(|piece| match piece {
        Piece::Bytes(bytes) => Some(bytes),
        Piece::End(_) => None,
    });
    let Some(first) = bytes.next() else { return Ok(0) };
    let written = match bytes.next() {
        // Mostly; it saves the list.
        None => writer.try_write(first)?,
        Some(second) => {
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES_MAX];
            let mut used = 0;
            for (slice, bytes) in slices.iter_mut().zip([first, second].into_iter().chain(bytes)) {
                *slice = IoSlice::new(bytes);
                used += 1;
            }
            writer.try_write_vectored(&slices[..used])?
        }
    };
    match written {
        0 => Err(io::ErrorKind::WriteZero.into()),
        written => Ok(written),
    }
}

/// Drops what was written from the front. Answers how many frames ended.
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
