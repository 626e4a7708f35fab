//! Work that both ends of a connection do alike: exchange hellos, read frames, notice a silent peer.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;

use crate::frame::{Decoder, Frame, FrameError, Head, Kind};
use crate::handshake::{self, HandshakeError, Hello, HelloRefused, Identity};
use crate::limits::{BODY_BYTES_MAX, HEADER_BYTES_MAX, HELLO_BYTES_MAX, SILENT_INTERVALS_MAX};
use crate::outbox::{Outbox, Outgoing, PushError, QueueMax};

/// Reason why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("malformed frame: {0}")]
    Frame(#[from] FrameError),
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    #[error("closed by the peer")]
    Closed,
    #[error("the peer is silent")]
    Silent,
    #[error("the peer does not read its answers")]
    NotReading,
}

/// Frames of one connection, and a count that shows life.
pub(crate) struct Incoming<R> {
    reader: R,
    decoder: Decoder,
}

impl<R: AsyncRead + Unpin> Incoming<R> {
    fn new(reader: R) -> Self {
        Self { reader, decoder: Decoder::new(HELLO_BYTES_MAX, 0) }
    }

    /// The next frame. Safe to drop at any await: bytes that were read stay in the decoder.
    pub(crate) async fn next(&mut self) -> Result<Frame, Ended> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            if self.reader.read_buf(&mut self.decoder.space()).await? == 0 {
                self.decoder.finish()?;
                return Err(Ended::Closed);
            }
        }
    }
}

impl<R> Incoming<R> {
    fn with_reader<R2>(self, reader: R2) -> Incoming<R2> {
        Incoming { reader, decoder: self.decoder }
    }
}

/// Connection whose peers have agreed to talk.
pub(crate) struct Agreed {
    pub(crate) incoming: Incoming<tokio::net::tcp::OwnedReadHalf>,
    pub(crate) writer: tokio::net::tcp::OwnedWriteHalf,
}

/// Handshake of the connecting side: say hello, hear hello or a refusal.
pub(crate) async fn greet(mut stream: TcpStream, identity: Identity) -> Result<Agreed, Ended> {
    stream.set_nodelay(true)?;
    stream.write_all(&frame_bytes(Kind::Hello, 0, &handshake::hello(identity))).await?;
    let mut incoming = Incoming::new(&mut stream);
    let frame = incoming.next().await?;
    match frame.head.kind {
        Kind::Hello => {
            handshake::judge(identity, &decode_hello(&frame.header)?)?;
        }
        Kind::Refusal => return Err(handshake::explain(identity, frame.head.method, &frame.header).into()),
        other => return Err(FrameError::Unexpected(other).into()),
    }
    let incoming = incoming.with_reader(());
    Ok(agree(stream, incoming))
}

/// Handshake of the accepting side: hear hello, answer with hello or a refusal. `full` refuses whoever it is.
pub(crate) async fn welcome(mut stream: TcpStream, identity: Identity, full: bool) -> Result<Agreed, Ended> {
    stream.set_nodelay(true)?;
    let mut incoming = Incoming::new(&mut stream);
    let frame = incoming.next().await?;
    if frame.head.kind != Kind::Hello {
        return Err(FrameError::Unexpected(frame.head.kind).into());
    }
    let incoming = incoming.with_reader(());
    let judged = match full {
        true => Err(HandshakeError::TooManyConnections),
        false => decode_hello(&frame.header).and_then(|hello| handshake::judge(identity, &hello)),
    };
    let ours = handshake::hello(identity);
    if let Err(refused) = judged {
        let bytes = frame_bytes(Kind::Refusal, refused.code(), &HelloRefused { hello: Some(ours) });
        stream.write_all(&bytes).await?;
        stream.shutdown().await?;
        return Err(refused.into());
    }
    stream.write_all(&frame_bytes(Kind::Hello, 0, &ours)).await?;
    Ok(agree(stream, incoming))
}

fn agree(stream: TcpStream, mut incoming: Incoming<()>) -> Agreed {
    incoming.decoder.set_limits(HEADER_BYTES_MAX, BODY_BYTES_MAX);
    let (reader, writer) = stream.into_split();
    Agreed { incoming: incoming.with_reader(reader), writer }
}

fn decode_hello(header: &Bytes) -> Result<Hello, HandshakeError> {
    Hello::decode(header.clone()).map_err(|_| HandshakeError::Malformed)
}

fn frame_bytes(kind: Kind, method: u16, message: &impl Message) -> Vec<u8> {
    let header = message.encode_to_vec();
    let header_bytes = u32::try_from(header.len()).expect("a hello is a few dozen bytes");
    let head = Head { kind, method, stream: 0, header_bytes, body_bytes: 0, deadline_ms: 0 };
    [&head.encode()[..], &header].concat()
}

/// Count of frames as they arrive.
#[derive(Default)]
pub(crate) struct Life(AtomicU64);

impl Life {
    pub(crate) fn sign(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Pings a peer that is silent for an interval; returns when it stays so.
pub(crate) async fn watch<T>(life: &Life, outbox: &Outbox<T>, interval: Duration, queue_max: usize) -> Ended {
    let mut ticks = tokio::time::interval(interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let (mut seen, mut silent_intervals) = (life.count(), 0);
    loop {
        ticks.tick().await;
        let now = life.count();
        silent_intervals = if now == seen { silent_intervals + 1 } else { 0 };
        seen = now;
        if silent_intervals >= SILENT_INTERVALS_MAX {
            return Ended::Silent;
        }
        if silent_intervals > 0 {
            // A full queue shows that the peer does not read; silence will end it if it does not send either.
            match outbox.push(Outgoing::bare(Kind::Ping, 0, 0), QueueMax::frames(queue_max), false) {
                Ok(()) | Err(PushError::Full) => {}
                Err(PushError::Closed) => return Ended::Closed,
            }
        }
    }
}
