//! Making a directory with its ancestors, durably.
//!
//! `std::fs::create_dir_all` leaves every directory that it makes to chance: a directory whose parent was not synced is
//! gone after a power failure, with everything below it, however often that was synced.

use std::io;
use std::path::{Component, Path};
use std::sync::Arc;

use crate::{Directory, RealDirectory};

/// Makes the directories `names`, each in the one before, the first in `root`; all durable when it returns. Those that are
/// there already are synced too: an earlier process may have made them and died before its sync.
///
/// # Errors
/// Any I/O error.
pub fn make_directories(root: Arc<dyn Directory>, names: &[&str]) -> io::Result<Arc<dyn Directory>> {
    let mut parent = root;
    for name in names {
        let made = match parent.make_directory(name) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        match parent.sync_names() {
            // A directory of somebody else, which this process may pass through and not read, holds nothing that it made.
            Err(error) if !made && error.kind() == io::ErrorKind::PermissionDenied => {}
            other => other?,
        }
        parent = parent.directory(name)?;
    }
    Ok(parent)
}

/// Makes a directory of the operating system with its ancestors; durable when it returns.
///
/// # Errors
/// Any I/O error; `NotADirectory` if a file is in the way.
pub fn create_directories(path: &Path) -> io::Result<()> {
    let absolute = std::path::absolute(path)?;
    let mut names = Vec::new();
    for component in absolute.components() {
        match component {
            Component::Normal(name) => names.push(name.to_str().ok_or(io::ErrorKind::InvalidFilename)?),
            Component::ParentDir => names.push(".."),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    make_directories(Arc::new(RealDirectory::new(Path::new("/"))), &names).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimulatedDisk;
    use holdfast_common::Random;

    #[test]
    fn a_directory_and_all_that_was_made_above_it_survive_a_power_failure() {
        for seed in 0..50 {
            let disk = SimulatedDisk::new(seed);
            let deep = make_directories(disk.root(), &["a", "b", "c"]).unwrap();
            deep.replace("file", b"content").unwrap();
            disk.lose_power(&mut Random::new(seed));
            let found = ["a", "b", "c"].iter().try_fold(disk.root(), |at, name| at.directory(name));
            assert_eq!(found.unwrap().read("file").unwrap(), b"content", "seed {seed}");
        }
    }

    #[test]
    fn what_a_killed_process_made_and_never_synced_is_made_durable_by_the_next() {
        let disk = SimulatedDisk::new(1);
        disk.root().make_directory("a").unwrap();
        disk.lose_process();
        make_directories(disk.root(), &["a", "b"]).unwrap();
        disk.lose_unsynced();
        assert!(disk.root().directory("a").and_then(|a| a.directory("b")).is_ok());
    }

    #[test]
    fn a_real_directory_is_made_with_its_ancestors_and_a_file_in_the_way_is_refused() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("a/b/../c");
        create_directories(&temporary.path().join("a/b")).unwrap();
        create_directories(&path).unwrap();
        create_directories(&path).unwrap();
        assert!(temporary.path().join("a/c").is_dir());
        std::fs::write(temporary.path().join("file"), b"x").unwrap();
        assert!(create_directories(&temporary.path().join("file/below")).is_err());
        assert!(create_directories(&temporary.path().join("file")).is_err());
    }
}
