//! Makes, renames, links and removes names, without any sync: each call that returned has happened, the one that failed
//! happened wholly or not at all, and no other name is there.

use super::{FileIds, Signal, Writer, blocks_of, children};
use crate::block::{Seen, Stamp, run_of_blocks};
use crate::random::Random;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const NAMES_MAX: usize = 120;
const DIRECTORIES: [&str; 3] = ["a", "b", "c"];

/// Which file each name refers to.
type Names = BTreeMap<String, u64>;

/// See the module.
#[derive(Debug)]
pub struct Churner {
    ids: FileIds,
    random: Random,
    names: Names,
    /// What the names are if the call that failed has happened.
    otherwise: Option<Names>,
    made_directories: bool,
}

impl Churner {
    /// A writer that has written nothing yet.
    #[must_use]
    pub fn new(ids: FileIds, seed: u64) -> Self {
        Self { ids, random: Random::new(seed), names: Names::new(), otherwise: None, made_directories: false }
    }

    fn any_name(&mut self) -> Option<(String, u64)> {
        let count = self.names.len();
        if count == 0 {
            return None;
        }
        let chosen = self.random.index(count);
        self.names.iter().nth(chosen).map(|(name, file)| (name.clone(), *file))
    }

    fn new_name(&mut self) -> String {
        let directory = DIRECTORIES[self.random.index(DIRECTORIES.len())];
        format!("{directory}/n{}", self.random.below(100_000))
    }

    /// Carries out one call that turns the names into `after`.
    fn change(&mut self, after: Names, call: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.otherwise = Some(after);
        call()?;
        self.names = self.otherwise.take().unwrap_or_default();
        Ok(())
    }

    fn step(&mut self, d: &Path) -> io::Result<()> {
        let (action, new) = (self.random.below(10), self.new_name());
        let known = self.any_name();
        let mut after = self.names.clone();
        match known {
            Some((old, file)) if action < 3 => {
                after.remove(&old);
                // Over whatever may be there.
                after.insert(new.clone(), file);
                self.change(after, || fs::rename(d.join(&old), d.join(&new)))
            }
            Some((old, file)) if action < 5 && !self.names.contains_key(&new) => {
                after.insert(new.clone(), file);
                self.change(after, || fs::hard_link(d.join(&old), d.join(&new)))
            }
            Some((old, _)) if action < 6 || self.names.len() >= NAMES_MAX => {
                after.remove(&old);
                self.change(after, || fs::remove_file(d.join(&old)))
            }
            _ if !self.names.contains_key(&new) => {
                let file = self.ids.fresh();
                after.insert(new.clone(), file);
                let mut handle = None;
                self.change(after, || {
                    handle = Some(File::create_new(d.join(&new))?);
                    Ok(())
                })?;
                let bytes = run_of_blocks(file, 0, 1 + file % 3, 1);
                handle.map_or(Ok(()), |mut handle| handle.write_all(&bytes))
            }
            _ => Ok(()),
        }
    }

    /// The files that were seen at these names, if the names are exactly these.
    fn matches(names: &Names, there: &BTreeMap<String, Vec<Seen>>) -> bool {
        names.len() == there.len()
            && names.iter().all(|(name, file)| there.get(name).is_some_and(|blocks| is_prefix_of_file(*file, blocks)))
    }
}

/// Nothing was synced: any part of the file from its start may be there, but of no other file.
fn is_prefix_of_file(file: u64, blocks: &[Seen]) -> bool {
    blocks.iter().zip(0..).all(|(seen, index)| *seen == Seen::Block(Stamp { file, index, generation: 1 }))
}

impl Writer for Churner {
    fn work(&mut self, directory: &Path, signal: &Signal) -> io::Result<()> {
        if !self.made_directories {
            for name in DIRECTORIES {
                fs::create_dir_all(directory.join(name))?;
            }
            self.made_directories = true;
        }
        while !signal.stopped() {
            self.step(directory)?;
            signal.advance();
        }
        Ok(())
    }

    fn verify(&mut self, directory: &Path) {
        let mut there = BTreeMap::new();
        for path in children(directory) {
            let known = DIRECTORIES.iter().any(|name| path.ends_with(name));
            assert!(known && path.is_dir(), "{} came from nowhere", path.display());
            for file in children(&path) {
                there.insert(relative(directory, &file), blocks_of(&file));
            }
        }
        let happened = self.otherwise.take();
        if Self::matches(&self.names, &there) {
            return;
        }
        if let Some(after) = happened.filter(|after| Self::matches(after, &there)) {
            self.names = after;
            return;
        }
        panic!("{}", self.difference(directory, &there));
    }
}

impl Churner {
    fn difference(&self, directory: &Path, there: &BTreeMap<String, Vec<Seen>>) -> String {
        let mut lines = vec![format!("names below {} are not what calls made them:", directory.display())];
        for (name, file) in &self.names {
            match there.get(name) {
                None => lines.push(format!("{name} (file {file}) is gone")),
                Some(blocks) if !is_prefix_of_file(*file, blocks) => {
                    lines.push(format!("{name} should be file {file}, but holds {blocks:?}"));
                }
                Some(_) => {}
            }
        }
        let ghosts = there.keys().filter(|name| !self.names.contains_key(*name));
        lines.extend(ghosts.map(|name| format!("{name} came from nowhere")));
        lines.join("\n")
    }
}

fn relative(directory: &Path, path: &Path) -> String {
    path.strip_prefix(directory).map(PathBuf::from).unwrap_or_default().to_string_lossy().into_owned()
}
