//! Replaces a file the careful way: a temporary beside it, synced, renamed over. The name always refers to one version,
//! whole, and never to an older one than the last that was renamed.

use super::{FileIds, Signal, Writer, blocks_of, children};
use crate::block::{Seen, Stamp, run_of_blocks};
use crate::random::Random;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

/// See the module.
#[derive(Debug)]
pub struct Replacer {
    file: u64,
    random: Random,
    /// Versions are generations; 0 is no file.
    renamed: u64,
    tried: u64,
}

impl Replacer {
    /// A writer that has written nothing yet.
    #[must_use]
    pub fn new(mut ids: FileIds, seed: u64) -> Self {
        Self { file: ids.fresh(), random: Random::new(seed), renamed: 0, tried: 0 }
    }

    /// Each version has another length.
    fn blocks_count(version: u64) -> u64 {
        1 + version * 7 % 40
    }
}

impl Writer for Replacer {
    fn work(&mut self, directory: &Path, signal: &Signal) -> io::Result<()> {
        let temporary = directory.join("temporary");
        while !signal.stopped() {
            self.tried += 1;
            let mut handle = File::create(&temporary)?;
            handle.write_all(&run_of_blocks(self.file, 0, Self::blocks_count(self.tried), self.tried))?;
            handle.sync_all()?;
            if self.random.one_in(2) {
                drop(handle);
            }
            std::fs::rename(&temporary, directory.join("current"))?;
            self.renamed = self.tried;
            signal.advance();
        }
        Ok(())
    }

    fn verify(&mut self, directory: &Path) {
        let mut version = 0;
        for path in children(directory) {
            let blocks = blocks_of(&path);
            for (seen, index) in blocks.iter().zip(0..) {
                let Seen::Block(stamp) = seen else { panic!("block {index} of {} is {seen:?}", path.display()) };
                let expected = Stamp { file: self.file, index, generation: stamp.generation };
                assert!(*stamp == expected && stamp.generation <= self.tried, "{stamp:?} in {}", path.display());
            }
            if path.ends_with("current") {
                let Some(Seen::Block(first)) = blocks.first() else { panic!("{} is empty", path.display()) };
                version = first.generation;
                let whole = blocks.iter().all(|seen| matches!(seen, Seen::Block(s) if s.generation == version));
                assert!(whole && blocks.len() as u64 == Self::blocks_count(version), "a mixture of versions");
            } else {
                assert!(path.ends_with("temporary"), "{} came from nowhere", path.display());
            }
        }
        assert!(version >= self.renamed, "version {version} is older than {}, which was renamed", self.renamed);
        self.renamed = version;
    }
}
