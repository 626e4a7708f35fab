//! Frames as bytes: pure, no socket in sight.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `HFT1` |
//! | 4 | 1 | kind |
//! | 5 | 1 | flags, 0 |
//! | 6 | 2 | method; in a refusal the reason |
//! | 8 | 8 | stream id, chosen by the caller |
//! | 16 | 4 | header length |
//! | 20 | 4 | body length |
//! | 24 | 4 | deadline in ms from arrival, 0 for none |
//! | 28 | 4 | CRC32C of the 28 bytes before |
//!
//! All little-endian. The protobuf header follows, then the body. The checksum covers the fixed header only, because a
//! wrong length would have a reader wait for ever; payloads carry checksums of their own.

use bytes::buf::Limit;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use holdfast_common::checksum::crc32c;

/// First bytes of every frame; the 1 changes when this layout does.
pub const MAGIC: u32 = u32::from_le_bytes(*b"HFT1");
/// Length of the fixed header.
pub const FIXED_BYTES: usize = 32;
/// Bytes read at once while looking for the next frame. Larger parts than what is here get a buffer of their own.
const SCRATCH_BYTES: usize = 64 << 10;

/// Kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// First frame of either side.
    Hello,
    /// Wants an answer under the same stream id.
    Request,
    /// The answer.
    Response,
    /// The request was not carried out, or the hello not accepted (stream 0).
    Refusal,
    /// Wants no answer.
    OneWay,
    /// From the server, unasked.
    Push,
    /// Wants a pong.
    Ping,
    /// Answers a ping.
    Pong,
}

impl Kind {
    fn to_wire(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Request => 2,
            Self::Response => 3,
            Self::Refusal => 4,
            Self::OneWay => 5,
            Self::Push => 6,
            Self::Ping => 7,
            Self::Pong => 8,
        }
    }

    fn from_wire(raw: u8) -> Result<Self, FrameError> {
        Ok(match raw {
            1 => Self::Hello,
            2 => Self::Request,
            3 => Self::Response,
            4 => Self::Refusal,
            5 => Self::OneWay,
            6 => Self::Push,
            7 => Self::Ping,
            8 => Self::Pong,
            other => return Err(FrameError::UnknownKind(other)),
        })
    }
}

/// Reason why bytes are no frame. After any of these the connection is closed: where the next frame starts is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol, or another layout of it.
    #[error("bad magic {0:#010x}")]
    BadMagic(u32),
    /// The fixed header was damaged.
    #[error("bad checksum of the frame header")]
    BadChecksum,
    /// A kind of a later version.
    #[error("unknown frame kind {0}")]
    UnknownKind(u8),
    /// A flag of a later version.
    #[error("unknown frame flags {0:#04x}")]
    UnknownFlags(u8),
    /// The protobuf header exceeds the limit.
    #[error("a header of {0} bytes is too large")]
    HeaderTooLarge(u32),
    /// The body exceeds the limit.
    #[error("a body of {0} bytes is too large")]
    BodyTooLarge(u32),
    /// The stream ended within a frame.
    #[error("the stream ended within a frame")]
    Truncated,
    /// A well-formed frame of a kind that has no place here.
    #[error("a frame of kind {0:?} is not expected here")]
    Unexpected(Kind),
}

/// The fixed header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Kind of the frame.
    pub kind: Kind,
    /// The method, or a refusal's reason.
    pub method: u16,
    /// Call that this belongs to; 0 for none.
    pub stream: u64,
    /// Length of the protobuf header.
    pub header_bytes: u32,
    /// Length of the body.
    pub body_bytes: u32,
    /// Milliseconds from arrival after which nobody waits for the answer; 0 for none.
    pub deadline_ms: u32,
}

impl Head {
    /// The 32 bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> [u8; FIXED_BYTES] {
        let mut raw = [0; FIXED_BYTES];
        raw[..4].copy_from_slice(&MAGIC.to_le_bytes());
        raw[4] = self.kind.to_wire();
        raw[6..8].copy_from_slice(&self.method.to_le_bytes());
        raw[8..16].copy_from_slice(&self.stream.to_le_bytes());
        raw[16..20].copy_from_slice(&self.header_bytes.to_le_bytes());
        raw[20..24].copy_from_slice(&self.body_bytes.to_le_bytes());
        raw[24..28].copy_from_slice(&self.deadline_ms.to_le_bytes());
        let crc = crc32c(&raw[..28]);
        raw[28..].copy_from_slice(&crc.to_le_bytes());
        raw
    }

    /// Reads them back.
    ///
    /// # Errors
    /// Fault that they have; magic first, so that another protocol is called that.
    pub fn decode(raw: &[u8; FIXED_BYTES]) -> Result<Self, FrameError> {
        let mut fields = &raw[..];
        let magic = fields.get_u32_le();
        if magic != MAGIC {
            return Err(FrameError::BadMagic(magic));
        }
        let (kind, flags) = (fields.get_u8(), fields.get_u8());
        let (method, stream) = (fields.get_u16_le(), fields.get_u64_le());
        let (header_bytes, body_bytes) = (fields.get_u32_le(), fields.get_u32_le());
        let deadline_ms = fields.get_u32_le();
        if fields.get_u32_le() != crc32c(&raw[..28]) {
            return Err(FrameError::BadChecksum);
        }
        if flags != 0 {
            return Err(FrameError::UnknownFlags(flags));
        }
        Ok(Self { kind: Kind::from_wire(kind)?, method, stream, header_bytes, body_bytes, deadline_ms })
    }
}

/// A whole frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The fixed header.
    pub head: Head,
    /// The protobuf header.
    pub header: Bytes,
    /// The body.
    pub body: Bytes,
}

/// Decoder of a stream of bytes into frames.
///
/// Bytes are put where [`Decoder::space`] says, then [`Decoder::next_frame`] is called until it has no more. A part
/// that has arrived whole is copied out of the scratch buffer, so that keeping it pins no more than its own length; a
/// part that has not is read straight into its own buffer of the right size.
#[derive(Debug)]
pub struct Decoder {
    header_bytes_max: u32,
    body_bytes_max: u32,
    scratch: BytesMut,
    state: State,
}

#[derive(Debug)]
enum State {
    Fixed,
    Header { head: Head, part: BytesMut },
    Body { head: Head, header: Bytes, part: BytesMut },
    Failed(FrameError),
}

impl Decoder {
    /// A decoder at the start of a stream.
    #[must_use]
    pub fn new(header_bytes_max: u32, body_bytes_max: u32) -> Self {
        Self { header_bytes_max, body_bytes_max, scratch: BytesMut::with_capacity(SCRATCH_BYTES), state: State::Fixed }
    }

    /// Sets the limits for the frames from here on.
    pub fn set_limits(&mut self, header_bytes_max: u32, body_bytes_max: u32) {
        (self.header_bytes_max, self.body_bytes_max) = (header_bytes_max, body_bytes_max);
    }

    /// Place for the next bytes of the stream. Never empty once `next_frame` has answered `None`.
    pub fn space(&mut self) -> Limit<&mut BytesMut> {
        match &mut self.state {
            State::Header { head, part } => {
                let missing = to_usize(head.header_bytes) - part.len();
                part.limit(missing)
            }
            State::Body { head, part, .. } => {
                let missing = to_usize(head.body_bytes) - part.len();
                part.limit(missing)
            }
            State::Fixed | State::Failed(_) => {
                // What is left here is less than a fixed header, so moving it to the front is cheap.
                self.scratch.reserve(SCRATCH_BYTES - self.scratch.len());
                let missing = SCRATCH_BYTES - self.scratch.len();
                (&mut self.scratch).limit(missing)
            }
        }
    }

    /// The next whole frame, or `None` until more bytes came.
    ///
    /// # Errors
    /// The stream is no sequence of frames; the same error from then on.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            match std::mem::replace(&mut self.state, State::Fixed) {
                State::Fixed => match self.take_fixed() {
                    Ok(Some(head)) => self.state = State::Header { head, part: self.take_part(head.header_bytes) },
                    Ok(None) => return Ok(None),
                    Err(error) => {
                        self.state = State::Failed(error);
                        return Err(error);
                    }
                },
                State::Header { head, part } => {
                    if part.len() < to_usize(head.header_bytes) {
                        self.state = State::Header { head, part };
                        return Ok(None);
                    }
                    let part_of_body = self.take_part(head.body_bytes);
                    self.state = State::Body { head, header: part.freeze(), part: part_of_body };
                }
                State::Body { head, header, part } => {
                    if part.len() < to_usize(head.body_bytes) {
                        self.state = State::Body { head, header, part };
                        return Ok(None);
                    }
                    return Ok(Some(Frame { head, header, body: part.freeze() }));
                }
                State::Failed(error) => {
                    self.state = State::Failed(error);
                    return Err(error);
                }
            }
        }
    }

    /// Whether the stream may end here.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] within a frame.
    pub fn finish(&self) -> Result<(), FrameError> {
        match &self.state {
            State::Fixed if self.scratch.is_empty() => Ok(()),
            State::Failed(error) => Err(*error),
            State::Fixed | State::Header { .. } | State::Body { .. } => Err(FrameError::Truncated),
        }
    }

    fn take_fixed(&mut self) -> Result<Option<Head>, FrameError> {
        let Some(raw) = self.scratch.first_chunk() else { return Ok(None) };
        let head = Head::decode(raw)?;
        if head.header_bytes > self.header_bytes_max {
            return Err(FrameError::HeaderTooLarge(head.header_bytes));
        }
        if head.body_bytes > self.body_bytes_max {
            return Err(FrameError::BodyTooLarge(head.body_bytes));
        }
        self.scratch.advance(FIXED_BYTES);
        Ok(Some(head))
    }

    /// A buffer for a part of this length, with as much of it as has come.
    fn take_part(&mut self, length: u32) -> BytesMut {
        let length = to_usize(length);
        let here = length.min(self.scratch.len());
        let mut part = BytesMut::with_capacity(length);
        part.extend_from_slice(&self.scratch[..here]);
        self.scratch.advance(here);
        part
    }
}

/// A length that was checked against a limit of at most 4 GiB.
fn to_usize(length: u32) -> usize {
    usize::try_from(length).expect("this code runs on 64-bit machines")
}

#[cfg(test)]
mod tests;
