//! Appends to files that never have a hole, a sync now and then: what is there is a prefix of what was written, and at
//! least what was synced.

use super::{FileIds, Signal, Writer, blocks_of, children};
use crate::block::{Seen, Stamp, run_of_blocks};
use crate::random::Random;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

const FILES_AT_ONCE: usize = 4;
const FILE_BLOCKS_MAX: u64 = 600;

#[derive(Clone, Copy, Debug, Default)]
struct Length {
    synced: u64,
    written: u64,
    /// The name is certain to exist.
    made: bool,
}

/// See the module.
#[derive(Debug)]
pub struct Appender {
    ids: FileIds,
    random: Random,
    files: BTreeMap<u64, Length>,
    open: Vec<u64>,
}

impl Appender {
    /// A writer that has written nothing yet.
    #[must_use]
    pub fn new(ids: FileIds, seed: u64) -> Self {
        Self { ids, random: Random::new(seed), files: BTreeMap::new(), open: Vec::new() }
    }

    fn append(&mut self, directory: &Path, file: u64) -> io::Result<()> {
        let length = self.files.entry(file).or_default();
        let mut handle = OpenOptions::new().append(true).create(true).open(directory.join(file.to_string()))?;
        length.made = true;
        for _ in 0..1 + self.random.below(4) {
            let count = 1 + self.random.below(24);
            let blocks = run_of_blocks(file, length.written, count, 1);
            // Written from here on, for all we will know if the call fails.
            length.written += count;
            handle.write_all(&blocks)?;
        }
        if self.random.one_in(2) {
            handle.sync_all()?;
            length.synced = length.written;
        }
        Ok(())
    }
}

impl Writer for Appender {
    fn work(&mut self, directory: &Path, signal: &Signal) -> io::Result<()> {
        while !signal.stopped() {
            while self.open.len() < FILES_AT_ONCE {
                self.open.push(self.ids.fresh());
            }
            let chosen = self.random.index(self.open.len());
            let file = self.open[chosen];
            self.append(directory, file)?;
            signal.advance();
            if self.files[&file].written > FILE_BLOCKS_MAX {
                self.open.swap_remove(chosen);
            }
        }
        Ok(())
    }

    fn verify(&mut self, directory: &Path) {
        let there: Vec<String> =
            children(directory).iter().filter_map(|p| Some(p.file_name()?.to_str()?.to_owned())).collect();
        for name in &there {
            let known = name.parse().is_ok_and(|file: u64| self.files.contains_key(&file));
            assert!(known, "{}/{name} came from nowhere", directory.display());
        }
        self.files.retain(|file, length| length.made || there.contains(&file.to_string()));
        for (file, length) in &mut self.files {
            let path = directory.join(file.to_string());
            assert!(path.exists(), "{} was made and is gone", path.display());
            let blocks = blocks_of(&path);
            let count = blocks.len() as u64;
            assert!(
                (length.synced..=length.written).contains(&count),
                "{} has {count} blocks; {} were synced and {} written",
                path.display(),
                length.synced,
                length.written
            );
            for (seen, index) in blocks.into_iter().zip(0..) {
                let expected = Seen::Block(Stamp { file: *file, index, generation: 1 });
                assert_eq!(seen, expected, "block {index} of {count} ({} synced) of {}", length.synced, path.display());
            }
            *length = Length { synced: count, written: count, made: true };
        }
        // A size within a block cannot be appended to in whole blocks.
        let odd = |file: &u64| std::fs::metadata(directory.join(file.to_string())).is_ok_and(|m| m.len() % 4096 != 0);
        self.open.retain(|file| !odd(file));
    }
}
