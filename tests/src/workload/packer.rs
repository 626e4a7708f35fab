//! Makes many small files, each synced and never touched again: a file that was synced is there, whole.

use super::{FileIds, Signal, Writer, blocks_of, children};
use crate::block::{Seen, Stamp, run_of_blocks};
use crate::random::Random;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// See the module.
#[derive(Debug)]
pub struct Packer {
    ids: FileIds,
    random: Random,
    /// Blocks of each file, and whether it was synced.
    files: BTreeMap<u64, (u64, bool)>,
}

impl Packer {
    /// A writer that has written nothing yet.
    #[must_use]
    pub fn new(ids: FileIds, seed: u64) -> Self {
        Self { ids, random: Random::new(seed), files: BTreeMap::new() }
    }

    fn make_some(&mut self, directory: &Path) -> io::Result<()> {
        let mut handles = Vec::new();
        // Several are written before the first is synced, so that one chunk holds bytes of many files.
        for _ in 0..1 + self.random.below(6) {
            let (file, blocks) = (self.ids.fresh(), 1 + self.random.below(4));
            self.files.insert(file, (blocks, false));
            let mut handle = File::create_new(directory.join(file.to_string()))?;
            handle.write_all(&run_of_blocks(file, 0, blocks, 1))?;
            handles.push((file, handle));
        }
        for (file, handle) in handles {
            handle.sync_all()?;
            if let Some(state) = self.files.get_mut(&file) {
                state.1 = true;
            }
        }
        Ok(())
    }
}

impl Writer for Packer {
    fn work(&mut self, directory: &Path, signal: &Signal) -> io::Result<()> {
        while !signal.stopped() {
            self.make_some(directory)?;
            signal.advance();
        }
        Ok(())
    }

    fn verify(&mut self, directory: &Path) {
        let mut found = BTreeMap::new();
        for path in children(directory) {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let file: u64 = name.parse().unwrap_or_default();
            let Some((blocks, synced)) = self.files.remove(&file) else {
                panic!("{} came from nowhere", path.display());
            };
            let seen = blocks_of(&path);
            let whole = seen.len() as u64 == blocks;
            assert!(whole || !synced, "{} was synced with {blocks} blocks and has {}", path.display(), seen.len());
            for (block, index) in seen.iter().zip(0..) {
                let expected = Seen::Block(Stamp { file, index, generation: 1 });
                assert_eq!(*block, expected, "block {index} of {}", path.display());
            }
            found.insert(file, (seen.len() as u64, true));
        }
        let lost: Vec<_> = self.files.iter().filter(|(_, (_, synced))| *synced).collect();
        assert!(lost.is_empty(), "synced files are gone from {}: {lost:?}", directory.display());
        self.files = found;
    }
}
