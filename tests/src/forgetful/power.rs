//! The power failure: takes back what no sync covered, by the journals of processes that are dead.

use super::journal::{Inode, Record, SECTOR_BYTES};
use crate::random::Random;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// How much of what was never synced is lost.
#[derive(Debug)]
pub enum Loss {
    /// All of it.
    Everything,
    /// Every sector and every length is in any state it went through since its last sync, independently of all others;
    /// the names of a directory stand as after any of the changes since its last sync.
    Anything(Random),
}

impl Loss {
    /// How many of `changes` changes in a row, from the first on, reached the disk.
    fn kept(&mut self, changes: usize) -> usize {
        match self {
            Self::Everything => 0,
            Self::Anything(random) => random.index(changes + 1),
        }
    }
}

/// What a power failure took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Changes of content or length that no sync covered when the power failed.
    pub changes: usize,
    /// Sectors put back to an earlier state.
    pub sectors: usize,
    /// Files put back to an earlier length.
    pub lengths: usize,
    /// Names put back.
    pub names: usize,
    /// Syncs that had returned: what they covered stays.
    pub syncs: usize,
}

/// Takes back what the processes whose journals are in `journal` had not synced below `root`, and removes the journals. The
/// processes are dead.
///
/// # Panics
/// If a file cannot be read or written.
pub fn fail(root: &Path, journal: &Path, mut loss: Loss) -> Taken {
    let (pending, syncs) = pending(journal);
    let mut taken = Taken { syncs, ..Taken::default() };
    let places = places(root, journal);
    let mut contents: BTreeMap<Inode, Vec<Record>> = BTreeMap::new();
    let mut names: BTreeMap<Inode, Vec<Record>> = BTreeMap::new();
    for record in pending {
        match &record {
            Record::Changes { file, .. } => contents.entry(*file).or_default().push(record),
            Record::Creates { directory, .. }
            | Record::Removes { directory, .. }
            | Record::Renames { directory, .. } => names.entry(*directory).or_default().push(record),
            Record::Synced { .. } => {}
        }
    }
    for (inode, changes) in contents {
        taken.changes += changes.len();
        if let Some(path) = places.get(&inode) {
            take_back_content(path, &changes, &mut loss, &mut taken).expect("a file can be put back");
        }
    }
    for (inode, changes) in names {
        // The root's own name stands in a directory of another disk, which loses nothing.
        let Some(directory) = places.get(&inode) else { continue };
        let kept = loss.kept(changes.len());
        // A directory that was never durable itself is gone with everything in it.
        if !directory.exists() {
            continue;
        }
        for change in changes[kept..].iter().rev() {
            take_back_name(directory, journal, change).expect("a name can be put back");
            taken.names += 1;
        }
    }
    std::fs::remove_dir_all(journal).expect("the journals can be removed");
    taken
}

/// The changes that no sync covered, in order, and how many syncs there were.
fn pending(journal: &Path) -> (Vec<Record>, usize) {
    let mut journals: Vec<PathBuf> = files(journal).filter(|path| is_journal(path)).collect();
    journals.sort(); // their names start with the time their process started
    let (mut pending, mut syncs) = (Vec::new(), 0);
    for (process, path) in journals.iter().enumerate() {
        let bytes = std::fs::read(path).expect("a journal can be read");
        for (number, record) in (0..).zip(Record::decode_all(&bytes)) {
            if let Record::Synced { file, up_to } = record {
                syncs += 1;
                pending.retain(|(by, at, change)| inode(change) != file || (*by == process && *at >= up_to));
            } else {
                pending.push((process, number, record));
            }
        }
    }
    (pending.into_iter().map(|(_, _, record)| record).collect(), syncs)
}

fn inode(record: &Record) -> Inode {
    match record {
        Record::Changes { file, .. } | Record::Synced { file, .. } => *file,
        Record::Creates { directory, .. } | Record::Removes { directory, .. } | Record::Renames { directory, .. } => {
            *directory
        }
    }
}

fn is_journal(path: &Path) -> bool {
    path.extension() == Some(OsStr::new("journal"))
}

fn files(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.expect("a directory can be listed").path())
}

/// Where everything below `root`, and everything held beside the journals, is.
fn places(root: &Path, journal: &Path) -> HashMap<Inode, PathBuf> {
    let mut places = HashMap::new();
    let mut waiting = vec![journal.to_owned(), root.to_owned()];
    while let Some(path) = waiting.pop() {
        let status = path.symlink_metadata().expect("what was listed is there");
        if status.is_dir() {
            waiting.extend(files(&path));
        }
        places.insert(status.ino(), path);
    }
    places
}

fn take_back_content(path: &Path, changes: &[Record], loss: &mut Loss, taken: &mut Taken) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let now = file.metadata()?.len();
    // Each state before a change that altered it, oldest first; the last state is what the file has now.
    let mut lengths = Vec::new();
    let mut sectors: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    for (at, change) in changes.iter().enumerate() {
        let Record::Changes { length, offset, before, .. } = change else { continue };
        let after = changes[at + 1..].iter().find_map(length_of).unwrap_or(now);
        if *length != after {
            lengths.push(*length);
        }
        for start in (0..before.length()).step_by(SECTOR_BYTES) {
            sectors.entry(offset + start as u64).or_default().push(before.part(start, SECTOR_BYTES));
        }
    }
    let length = lengths.get(loss.kept(lengths.len())).copied().unwrap_or(now);
    for (offset, states) in sectors {
        let Some(state) = states.get(loss.kept(states.len())) else { continue };
        let inside = usize::try_from(length.saturating_sub(offset)).unwrap_or(usize::MAX).min(SECTOR_BYTES);
        taken.sectors += usize::from(differs(&file, offset, &state[..inside])?);
        file.write_all_at(&state[..inside], offset)?;
    }
    if length != now {
        file.set_len(length)?;
        taken.lengths += 1;
    }
    Ok(())
}

fn length_of(record: &Record) -> Option<u64> {
    match record {
        Record::Changes { length, .. } => Some(*length),
        _ => None,
    }
}

/// Whether the file holds something else there.
fn differs(file: &File, offset: u64, state: &[u8]) -> io::Result<bool> {
    let mut now = vec![0; state.len()];
    let mut done = 0;
    while done < now.len() {
        match file.read_at(&mut now[done..], offset + done as u64)? {
            0 => break,
            read => done += read,
        }
    }
    Ok(now != state)
}

fn take_back_name(directory: &Path, journal: &Path, change: &Record) -> io::Result<()> {
    match change {
        Record::Creates { name, .. } => match remove(&directory.join(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()), // it was written down, then killed
            other => other,
        },
        Record::Removes { name, held, .. } => put_back(&journal.join(held), &directory.join(name)),
        Record::Renames { from, to, held, .. } => {
            if directory.join(from).exists() {
                return Ok(()); // the same
            }
            std::fs::rename(directory.join(to), directory.join(from))?;
            if held.is_empty() { Ok(()) } else { put_back(&journal.join(held), &directory.join(to)) }
        }
        Record::Changes { .. } | Record::Synced { .. } => Ok(()),
    }
}

/// Removes a file, or a directory with everything in it.
fn remove(path: &Path) -> io::Result<()> {
    if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

fn put_back(held: &Path, path: &Path) -> io::Result<()> {
    match std::fs::hard_link(held, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()), // the same
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forgetful::journal::Before;

    struct Disk {
        directory: tempfile::TempDir,
        records: Vec<Record>,
    }

    impl Disk {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            std::fs::create_dir(directory.path().join("root")).unwrap();
            std::fs::create_dir(directory.path().join("journal")).unwrap();
            Self { directory, records: Vec::new() }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("root/file")
        }

        /// Replaces what is from `offset` on, as the library would write it down.
        fn write(&mut self, offset: usize, bytes: &[u8]) {
            let mut content = std::fs::read(self.path()).unwrap();
            let (length, sector) = (content.len() as u64, SECTOR_BYTES);
            let (start, end) = (offset / sector * sector, (offset + bytes.len()).div_ceil(sector) * sector);
            let mut before = vec![0; end - start];
            let old = content.get(start..content.len().min(end)).unwrap_or_default();
            before[..old.len()].copy_from_slice(old);
            let file = self.path().metadata().unwrap().ino();
            self.records.push(Record::Changes { file, length, offset: start as u64, before: Before::of(before) });
            content.resize(content.len().max(offset + bytes.len()), 0);
            content[offset..offset + bytes.len()].copy_from_slice(bytes);
            std::fs::write(self.path(), content).unwrap();
        }

        fn sync(&mut self) {
            let file = self.path().metadata().unwrap().ino();
            self.records.push(Record::Synced { file, up_to: self.records.len() as u64 });
        }

        fn fail(self, loss: Loss) -> (Vec<u8>, Taken) {
            let journal = self.directory.path().join("journal");
            let bytes: Vec<u8> = self.records.iter().flat_map(Record::encode).collect();
            std::fs::write(journal.join("1.journal"), bytes).unwrap();
            let taken = fail(&self.directory.path().join("root"), &journal, loss);
            (std::fs::read(self.path()).unwrap(), taken)
        }
    }

    #[test]
    fn what_was_synced_stays_and_the_rest_is_as_before() {
        let mut disk = Disk::new();
        std::fs::write(disk.path(), [1; 700]).unwrap();
        disk.write(100, &[2; 200]);
        disk.sync();
        let synced = std::fs::read(disk.path()).unwrap();
        disk.write(0, &[3; 2000]);
        disk.write(650, &[4; 10]);
        let (content, taken) = disk.fail(Loss::Everything);
        assert_eq!(content, synced);
        assert_eq!((taken.changes, taken.lengths, taken.syncs), (2, 1, 1));
    }

    #[test]
    fn every_sector_is_in_some_state_it_went_through() {
        let mut mixed = false;
        for seed in 0..50 {
            let mut disk = Disk::new();
            std::fs::write(disk.path(), [1; 4096]).unwrap();
            disk.write(0, &[2; 4096]);
            disk.write(512, &[3; 1024]);
            let (content, _) = disk.fail(Loss::Anything(Random::new(seed)));
            assert_eq!(content.len(), 4096);
            let states: Vec<u8> = content.chunks(512).map(|sector| sector[0]).collect();
            assert!(content.chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
            assert!(states.iter().enumerate().all(|(at, state)| match at {
                1 | 2 => (1..=3).contains(state),
                _ => (1..=2).contains(state),
            }));
            mixed |= states.contains(&1) && states.contains(&2) && states.contains(&3);
        }
        assert!(mixed);
    }

    #[test]
    fn a_new_directory_whose_parent_was_not_synced_goes_with_everything_in_it() {
        for synced in [false, true] {
            let mut disk = Disk::new();
            std::fs::write(disk.path(), "other").unwrap();
            let root = disk.directory.path().join("root");
            let (new, at) = (root.join("new"), root.metadata().unwrap().ino());
            std::fs::create_dir(&new).unwrap();
            std::fs::write(new.join("file"), "content").unwrap();
            let inside = new.metadata().unwrap().ino();
            disk.records.push(Record::Creates { directory: at, name: "new".into() });
            disk.records.push(Record::Creates { directory: inside, name: "file".into() });
            disk.records.push(Record::Synced { file: inside, up_to: 2 });
            if synced {
                disk.records.push(Record::Synced { file: at, up_to: 3 });
            }
            let kept = disk.directory.path().to_owned();
            let journal = kept.join("journal");
            let bytes: Vec<u8> = disk.records.iter().flat_map(Record::encode).collect();
            std::fs::write(journal.join("1.journal"), bytes).unwrap();
            fail(&root, &journal, Loss::Everything);
            assert_eq!(new.join("file").exists(), synced);
        }
    }

    #[test]
    fn names_go_back_in_the_reverse_order() {
        let mut disk = Disk::new();
        let (root, journal) = (disk.directory.path().join("root"), disk.directory.path().join("journal"));
        let directory = root.metadata().unwrap().ino();
        // A file replaced by renaming another over it, which then was removed.
        std::fs::write(journal.join("held-old"), "old").unwrap();
        std::fs::write(journal.join("held-new"), "new").unwrap();
        let name = std::ffi::OsString::from;
        disk.records = vec![
            Record::Creates { directory, name: name("file.tmp") },
            Record::Renames { directory, from: name("file.tmp"), to: name("file"), held: name("held-old") },
            Record::Removes { directory, name: name("file"), held: name("held-new") },
        ];
        let (content, taken) = disk.fail(Loss::Everything);
        assert_eq!((content.as_slice(), taken.names), (b"old".as_slice(), 3));
    }
}
