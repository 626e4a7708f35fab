//! Trees to work with: one grown from a seed, with everything that a name can be, and real sources from cargo's registry.

use crate::attribute;
use crate::command::Run;
use crate::random::Random;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Grows a tree of about `files` files below `top`, which must exist: sizes around every boundary, odd names, links,
/// modes, times to the nanosecond, attributes.
///
/// # Panics
/// If anything cannot be made.
pub fn grow(top: &Path, files: usize, seed: u64) {
    let mut random = Random::new(seed);
    let mut directories = vec![top.to_owned()];
    let mut made: Vec<PathBuf> = Vec::new();
    for number in 0..files {
        let parent = directories[random.index(directories.len())].clone();
        let path = parent.join(name(&mut random, number));
        match random.below(20) {
            0 | 1 if parent.components().count() < top.components().count() + 12 => {
                std::fs::create_dir(&path).expect("a directory can be made");
                directories.push(path);
            }
            2 => symlink(target(&mut random), &path).expect("a symlink can be made"),
            3 if !made.is_empty() => {
                let existing = &made[random.index(made.len())];
                std::fs::hard_link(existing, &path).expect("a hard link can be made");
            }
            _ => {
                grow_file(&path, &mut random);
                made.push(path);
            }
        }
    }
}

fn name(random: &mut Random, number: usize) -> String {
    // With the number they are unique; the rest is what names really look like, and what they may look like.
    match random.below(8) {
        0 => format!("{number} with  spaces "),
        1 => format!("ünïcödé-文件-{number}"),
        2 => format!("-{number}"),
        3 => format!(".hidden{number}"),
        4 => format!("{number}\nnewline\\and\"quotes'"),
        5 => format!("{}{number}", "long".repeat(60)),
        _ => format!("file{number}.rs"),
    }
}

fn target(random: &mut Random) -> String {
    match random.below(3) {
        0 => "../nowhere".to_owned(),
        1 => "/".repeat(1 + random.index(40)),
        _ => "x".repeat(1 + random.index(4000)),
    }
}

fn grow_file(path: &Path, random: &mut Random) {
    const BOUNDARIES: [usize; 12] = [0, 1, 511, 4095, 4096, 4097, 65535, 65536, 65537, 131_072, 262_143, 300_001];
    let length = if random.one_in(3) { BOUNDARIES[random.index(BOUNDARIES.len())] } else { random.index(20_000) };
    std::fs::write(path, random.bytes(length)).expect("a file can be written");
    if random.one_in(4) {
        let value_length = 1 + random.index(200);
        let value = random.bytes(value_length);
        attribute::set(path, b"user.test", &value, 0).expect("an attribute can be set");
    }
    let mode = [0o644, 0o600, 0o755, 0o400, 0o4755, 0o2711, 0o000][random.index(7)];
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("a mode can be set");
    // 2001 to 2033, to the nanosecond.
    let time = Duration::from_nanos(1_000_000_000_000_000_000 + random.below(1_000_000_000_000_000_000));
    let file = std::fs::File::open(path).expect("root can open it");
    file.set_modified(SystemTime::UNIX_EPOCH + time).expect("a time can be set");
}

/// Copies about `files` real files from the sources that cargo has fetched into `destination` (on the local disk, as the
/// source of what the test copies): crates in order of their names, none above 1,500 files.
///
/// # Panics
/// If there are not as many.
pub fn real_sources(destination: &Path, files: usize) -> usize {
    let mut crates: Vec<PathBuf> = registry_sources();
    crates.sort();
    let mut count = 0;
    for source in crates {
        if count >= files {
            break;
        }
        let inside = count_files(&source);
        if inside <= 1500 {
            Run::new("cp").arg("-a").arg(&source).arg(destination).ok();
            count += inside;
        }
    }
    assert!(count >= files, "cargo's registry holds {count} source files, not {files}; run cargo fetch");
    count
}

/// The unpacked crates of cargo's registry.
///
/// # Panics
/// If there is none: this program was built from it.
#[must_use]
pub fn registry_sources() -> Vec<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").expect("a user has a home")).join(".cargo"),
        PathBuf::from,
    );
    let source = home.join("registry/src");
    let registries = std::fs::read_dir(&source).unwrap_or_else(|e| panic!("{}: {e}", source.display()));
    registries.flatten().flat_map(|registry| children(&registry.path())).collect()
}

fn children(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory).map(|entries| entries.flatten().map(|e| e.path()).collect()).unwrap_or_default()
}

/// Files and other names that are not directories, below a directory.
#[must_use]
pub fn count_files(directory: &Path) -> usize {
    children(directory).iter().map(|path| if path.is_dir() && !path.is_symlink() { count_files(path) } else { 1 }).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    #[test]
    fn one_seed_grows_one_tree_and_a_copy_is_the_same_tree() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two, copy) =
            (directory.path().join("one"), directory.path().join("two"), directory.path().join("copy"));
        for top in [&one, &two] {
            std::fs::create_dir(top).unwrap();
            grow(top, 150, 11);
        }
        Run::new("cp").arg("-a").arg(&one).arg(&copy).ok();
        Manifest::of(&one).assert_same(&Manifest::of(&copy), "the copy differs");
        assert!(Manifest::of(&one).0.len() >= 140);
        assert!(!Manifest::of(&one).differences(&Manifest::default()).is_empty());
        let names = |top: &Path| Manifest::of(top).0.into_keys().collect::<Vec<_>>();
        assert_eq!(names(&one), names(&two));
    }
}
