//! The trace of a run: a hash of everything that happened, and lines for people when they want them.

use std::fmt::Debug;

use holdfast_common::NodeId;

use crate::packet::Packet;

/// FNV-1a, so that two runs can be compared without keeping either.
pub(crate) struct Trace {
    hash: u64,
    shown: bool,
}

impl Trace {
    pub(crate) fn new(shown: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, shown }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    fn mix(&mut self, number: u64) {
        for byte in number.to_le_bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    pub(crate) fn packet(&mut self, now: u64, from: NodeId, to: NodeId, packet: &Packet) {
        [now, from.0, to.0, packet.size()].into_iter().for_each(|number| self.mix(number));
        if self.shown {
            println!("{:>9.3} ms {from} -> {to}: {}", milliseconds(now), cut(packet));
        }
    }

    pub(crate) fn note(&mut self, now: u64, line: impl FnOnce() -> String) {
        self.mix(now);
        if self.shown {
            println!("{:>9.3} ms {}", milliseconds(now), line());
        }
    }
}

#[allow(clippy::cast_precision_loss)]
fn milliseconds(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// The beginning of what a thing looks like.
fn cut(thing: &impl Debug) -> String {
    const LINE_CHARS_MAX: usize = 300;
    format!("{thing:?}").chars().take(LINE_CHARS_MAX).collect()
}
