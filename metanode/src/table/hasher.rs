//! The hash under a digest (`digest` says why this one), and how numbers and bytes are fed to it.

use bytes::Bytes;
use holdfast_common::{ChunkId, DiskId, GroupId, InodeId, SessionId};
use holdfast_proto::meta::{GroupState, Kind};

/// Odd, of no pattern: SplitMix64's.
const MULTIPLIER: u64 = 0xBF58_476D_1CE4_E5B9;

/// A hash under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hasher(u64);

impl Hasher {
    pub(super) fn new() -> Self {
        Self(0x9E37_79B9_7F4A_7C15)
    }

    pub(super) fn word(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(MULTIPLIER);
        self.0 = mixed ^ (mixed >> 32);
    }

    /// The length goes first, so that bytes never pass for those of the next field.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.word(bytes.len() as u64);
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.word(u64::from_le_bytes(word));
        }
    }

    pub(super) fn finish(self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 31)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 29)
    }
}

/// Feeds every field into a digest. Implementations take their type apart, so that a new field does not compile until
/// it is fed. A borrowed key feeds as the key does.
pub(super) trait Digest {
    fn feed(&self, to: &mut Hasher);
}

macro_rules! feed_as_words {
    ($($type:ty: $value:ident => $word:expr;)*) => {
        $(impl Digest for $type {
            fn feed(&self, to: &mut Hasher) {
                let $value = *self;
                to.word($word);
            }
        })*
    };
}

feed_as_words! {
    u64: value => value;
    i64: value => value.cast_unsigned();
    InodeId: id => id.0;
    ChunkId: id => id.0;
    SessionId: id => id.0;
    GroupId: id => id.0;
    DiskId: id => id.0;
    Kind: kind => u64::from(i32::from(kind).cast_unsigned());
    GroupState: state => u64::from(i32::from(state).cast_unsigned());
}

impl Digest for () {
    fn feed(&self, _: &mut Hasher) {}
}

impl<A: Digest, B: Digest> Digest for (A, B) {
    fn feed(&self, to: &mut Hasher) {
        self.0.feed(to);
        self.1.feed(to);
    }
}

impl Digest for [u8] {
    fn feed(&self, to: &mut Hasher) {
        to.bytes(self);
    }
}

impl Digest for Bytes {
    fn feed(&self, to: &mut Hasher) {
        to.bytes(self);
    }
}
