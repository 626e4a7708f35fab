//! Overwrites blocks of one file at random, a sync now and then: each block is at least as new as the last sync saw it,
//! and a hole only if no sync ever saw it written.

use super::{FileIds, Signal, Writer, blocks_of, children};
use crate::block::{BLOCK_BYTES_U64, Seen, Stamp};
use crate::random::Random;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCKS: usize = 512;

/// See the module.
#[derive(Debug)]
pub struct Overwriter {
    file: u64,
    random: Random,
    made: bool,
    /// The generation that the last sync covered, by block.
    synced: Vec<u64>,
    /// The last generation that was written.
    written: Vec<u64>,
    /// The last generation that was tried. One that a crash cut off is never used again, and no later sync covers it.
    tried: Vec<u64>,
}

impl Overwriter {
    /// A writer that has written nothing yet.
    #[must_use]
    pub fn new(mut ids: FileIds, seed: u64) -> Self {
        let (synced, written, tried) = (vec![0; BLOCKS], vec![0; BLOCKS], vec![0; BLOCKS]);
        Self { file: ids.fresh(), random: Random::new(seed), made: false, synced, written, tried }
    }

    fn make(&mut self, directory: &Path) -> io::Result<File> {
        let path = directory.join("file");
        let handle = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        if !self.made {
            handle.set_len(BLOCKS as u64 * BLOCK_BYTES_U64)?;
            self.made = true;
        }
        Ok(handle)
    }

    fn write(&mut self, handle: &File) -> io::Result<()> {
        let first = self.random.index(BLOCKS);
        let count = (1 + self.random.index(6)).min(BLOCKS - first);
        let mut bytes = Vec::new();
        for index in first..first + count {
            self.tried[index] += 1;
            bytes.extend(Stamp { file: self.file, index: index as u64, generation: self.tried[index] }.block());
        }
        handle.write_all_at(&bytes, first as u64 * BLOCK_BYTES_U64)?;
        self.written[first..first + count].copy_from_slice(&self.tried[first..first + count]);
        Ok(())
    }
}

impl Writer for Overwriter {
    fn work(&mut self, directory: &Path, signal: &Signal) -> io::Result<()> {
        let handle = self.make(directory)?;
        while !signal.stopped() {
            self.write(&handle)?;
            if self.random.one_in(20) {
                handle.sync_data()?;
                self.synced.clone_from(&self.written);
            }
            signal.advance();
        }
        Ok(())
    }

    fn verify(&mut self, directory: &Path) {
        let names = children(directory);
        assert!(names.len() <= 1 && (names.len() == 1 || !self.made), "the file is gone: {names:?}");
        if !self.made {
            return;
        }
        let blocks = blocks_of(&directory.join("file"));
        assert_eq!(blocks.len(), BLOCKS, "the size that was set is lost");
        for (index, seen) in blocks.into_iter().enumerate() {
            let allowed = self.synced[index]..=self.tried[index];
            let generation = match seen {
                Seen::Hole => 0,
                Seen::Block(stamp) if stamp.file == self.file && stamp.index == index as u64 => stamp.generation,
                other => panic!("block {index} of {} is {other:?}", directory.display()),
            };
            assert!(
                allowed.contains(&generation),
                "block {index} has generation {generation}, allowed are {allowed:?}"
            );
            (self.synced[index], self.written[index]) = (generation, generation);
        }
    }
}
