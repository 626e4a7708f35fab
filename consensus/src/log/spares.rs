//! Files that are kept for segments to come, so that a full disk stops neither a start nor the log while it makes itself shorter.
//!
//! They have their blocks from the start, read as zeros, and are used when there is no room for another file.

use std::io;

use super::segment::{PREPARING, fill_with_zeros, is_passing, lasting};
use holdfast_storage::Directory;

/// Segments that a log can begin on a full disk: one for a start, one to write on while old ones are made obsolete.
pub(super) const SPARES: usize = 2;
/// Suffix of the names of spares.
const SUFFIX: &str = ".spare";
/// Name of a file that is no spare yet. Another than a segment's: those are prepared by another thread.
const UNFINISHED: &str = "spare.tmp";

fn name(number: u64) -> String {
    format!("{number:016x}{SUFFIX}")
}

fn parse_name(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(SUFFIX).filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

#[derive(Debug, Default)]
pub(super) struct Spares {
    numbers: Vec<u64>,
}

impl Spares {
    /// Those of a directory whose length is that of a segment. Everything else that is no segment goes, but for a segment in
    /// preparation: a crash on a full disk must not cost its space.
    pub(super) fn open(disk: &dyn Directory, strays: &[String], segment_bytes: u32) -> io::Result<Self> {
        let mut spares = Self::default();
        for stray in strays.iter().filter(|stray| *stray != PREPARING) {
            let whole = disk.open(stray)?.length_bytes()? == u64::from(segment_bytes);
            match parse_name(stray).filter(|_| whole) {
                Some(number) => spares.numbers.push(number),
                None => disk.remove(stray)?,
            }
        }
        if strays.iter().any(|stray| stray == PREPARING) {
            spares.take_prepared(disk, segment_bytes)?;
        }
        Ok(spares)
    }

    /// It may hold batches of the number that is used next, so it is overwritten first.
    fn take_prepared(&mut self, disk: &dyn Directory, segment_bytes: u32) -> io::Result<()> {
        let file = disk.open(PREPARING)?;
        let whole = file.length_bytes()? == u64::from(segment_bytes) && self.numbers.len() < SPARES;
        if !whole || fill_with_zeros(&*file, segment_bytes).is_err() {
            return disk.remove(PREPARING);
        }
        file.sync_data()?;
        self.adopt(disk, PREPARING)
    }

    fn adopt(&mut self, disk: &dyn Directory, file: &str) -> io::Result<()> {
        let number = self.numbers.iter().max().map_or(1, |last| last + 1);
        disk.rename(file, &name(number))?;
        self.numbers.push(number);
        Ok(())
    }

    pub(super) fn count(&self) -> usize {
        self.numbers.len()
    }

    /// Takes one out; its name stays until it gets another.
    pub(super) fn take(&mut self) -> Option<String> {
        self.numbers.pop().map(name)
    }

    /// Puts one back that was taken and is as it was. False if the file is no spare.
    pub(super) fn put_back(&mut self, file: &str) -> bool {
        let number = parse_name(file);
        self.numbers.extend(number);
        number.is_some()
    }

    /// Makes one. Says whether there was room and a descriptor for it; if not, nothing of it stays.
    pub(super) fn add(&mut self, disk: &dyn Directory, segment_bytes: u32) -> io::Result<bool> {
        match self.try_add(disk, segment_bytes) {
            Err(error) if is_passing(&error) => match disk.remove(UNFINISHED) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(false),
            },
            other => other.map(|()| true),
        }
    }

    fn try_add(&mut self, disk: &dyn Directory, segment_bytes: u32) -> io::Result<()> {
        let file = disk.create_empty(UNFINISHED)?;
        file.allocate(u64::from(segment_bytes))?;
        file.sync_data().map_err(lasting)?;
        self.adopt(disk, UNFINISHED)?;
        disk.sync_names().map_err(lasting)
    }
}
