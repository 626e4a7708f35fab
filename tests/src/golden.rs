//! Golden data directories: what a former build wrote, kept in `tests/golden/` so that every later build opens it or refuses
//! it with a sentence. `NAME.tar.xz` is the data directory of a cluster (sparse, without `run/`), `NAME.manifest` what
//! its volume held, one line a name. `NAME` is the commit of the build that made it.
//!
//! The content is plain numbered lines, which compress, shards and parity too.

use crate::manifest::Manifest;
use crate::posix::{data_extents, fallocate, make_node};
use crate::{Run, attribute};
use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Overwrites of one block, each synced: more records than an idle datanode leaves without a checkpoint of its index
/// (1,000), and as many dead shards to compact.
const OVERWRITES: u64 = 1100;

/// Longest time that packing may take.
const PACK_LIMIT: Duration = Duration::from_secs(600);

/// Sizes around every boundary of pages, shards and chunks.
const SIZES: [usize; 13] =
    [0, 1, 511, 4095, 4096, 4097, 65_535, 65_536, 65_537, 300_001, 1 << 20, (4 << 20) + 1, (5 << 20) + 77];

/// The golden directories of the repository.
#[must_use]
pub fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// Numbered lines that name their file, cut at `length`.
fn lines(name: &str, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 64);
    for number in 0_u64.. {
        if bytes.len() >= length {
            break;
        }
        bytes.extend_from_slice(format!("{name} {number:08}\n").as_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Fills an empty volume with a little of everything.
///
/// # Panics
/// If anything cannot be made.
pub fn fill(top: &Path) {
    sizes(&top.join("sizes"));
    changed(&top.join("changed"));
    names(&top.join("names"));
    attributes(&top.join("attributes"));
}

fn make(directory: &Path) {
    fs::create_dir(directory).expect("a directory can be made");
}

fn sizes(directory: &Path) {
    make(directory);
    for size in SIZES {
        let name = format!("of-{size}");
        fs::write(directory.join(&name), lines(&name, size)).expect("a file can be written");
    }
}

/// Files that are not as they were written first: overwritten, cut, grown, punched, appended to, removed.
fn changed(directory: &Path) {
    make(directory);
    let open = |name: &str| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.open(directory.join(name)).expect("a file can be opened")
    };
    let put = |file: &File, bytes: &[u8], at: u64| {
        file.write_all_at(bytes, at).expect("a file can be written");
        file.sync_all().expect("a file can be synced");
    };
    let hole = open("hole");
    put(&hole, &lines("hole begins", 100_000), 0);
    put(&hole, &lines("hole ends", 50_000), 3 << 20);
    let punched = open("punched");
    put(&punched, &lines("punched", 1 << 20), 0);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(&punched, mode, 131_072, 393_216).expect("a hole can be punched");
    let cut = open("cut-and-grown");
    put(&cut, &lines("cut", 700_000), 0);
    cut.set_len(123_457).expect("a file can be cut");
    cut.set_len(2 << 20).expect("a file can be grown");
    let overwritten = open("overwritten");
    put(&overwritten, &lines("before", 600_000), 0);
    for number in 0..OVERWRITES {
        put(&overwritten, &lines(&format!("overwrite {number}"), 4096), 200_001);
    }
    let appended = open("appended");
    for number in 0..20 {
        put(&appended, &lines(&format!("append {number}"), 5000), number * 5000);
    }
    for number in 0..20 {
        let name = directory.join(format!("removed-{number}"));
        fs::write(&name, lines("removed", 70_000)).expect("a file can be written");
        fs::remove_file(&name).expect("a file can be removed");
    }
    fs::write(directory.join("first-name"), lines("renamed", 10_000)).expect("a file can be written");
    fs::rename(directory.join("first-name"), directory.join("second-name")).expect("a file can be renamed");
}

fn names(directory: &Path) {
    make(directory);
    let deep = directory.join("a/b/c/d/e/f");
    fs::create_dir_all(&deep).expect("directories can be made");
    fs::write(deep.join("deep"), "deep").expect("a file can be written");
    fs::write(directory.join("one"), lines("one", 5000)).expect("a file can be written");
    for link in ["two", "a/three"] {
        fs::hard_link(directory.join("one"), directory.join(link)).expect("a hard link can be made");
    }
    for (link, target) in [("symlink", "one"), ("dangling", "../no/such"), ("long", &"x/".repeat(1500))] {
        symlink(target, directory.join(link)).expect("a symlink can be made");
    }
    for name in ["with  spaces ", "umlaut-ü", "line\nbreak", &"n".repeat(255)] {
        fs::write(directory.join(name), name).expect("a file can be written");
    }
    make_node(&directory.join("fifo"), libc::S_IFIFO | 0o640, 0).expect("a FIFO can be made");
    make_node(&directory.join("null"), libc::S_IFCHR | 0o666, libc::makedev(1, 3)).expect("a device can be made");
    make(&directory.join("empty"));
    make(&directory.join("many"));
    for number in 0..100 {
        let name = format!("{number:03}");
        fs::write(directory.join("many").join(&name), &name).expect("a file can be written");
    }
}

fn attributes(directory: &Path) {
    make(directory);
    for (index, mode) in [0o644, 0o600, 0o4755, 0o2711, 0o1777, 0o000].into_iter().enumerate() {
        let path = directory.join(format!("mode-{mode:o}"));
        fs::write(&path, "mode").expect("a file can be written");
        chown(&path, Some(1000), Some(1001)).expect("an owner can be set");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode can be set");
        let nanoseconds = 1_000_000_000_123_456_789 + index as u64 * 300_000_000_000_000_000;
        let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds);
        let file = File::open(&path).expect("root can open it");
        file.set_times(FileTimes::new().set_modified(time).set_accessed(time)).expect("times can be set");
    }
    let path = directory.join("extended");
    fs::write(&path, "extended").expect("a file can be written");
    for (name, value) in [
        (&b"user.empty"[..], &b""[..]),
        (b"user.bytes", &[0, 1, 127, 128, 255]),
        (b"user.long", &[b'v'; 2000]),
        (b"trusted.one", b"trusted"),
    ] {
        attribute::set(&path, name, value, 0).expect("an attribute can be set");
        attribute::set(directory, name, value, 0).expect("an attribute can be set");
    }
}

/// A volume's content as text: its manifest, and the data extents of the sparse files.
///
/// # Panics
/// If anything cannot be read.
#[must_use]
pub fn describe(top: &Path) -> String {
    let mut text = Manifest::of(top).to_text();
    for name in ["changed/hole", "changed/punched", "changed/cut-and-grown"] {
        let file = File::open(top.join(name)).expect("a file can be opened");
        let extents = data_extents(&file).expect("extents can be asked for");
        text.push_str(&format!("data of {name}: {extents:?}\n"));
    }
    text
}

/// Leaves a file that has bytes, no name, and an open handle. Killed before the handle is closed, the cluster is left with
/// an orphan.
///
/// # Panics
/// If it cannot be made.
#[must_use]
pub fn leave_orphan(top: &Path) -> File {
    let path = top.join("orphan");
    let file = File::create(&path).expect("a file can be made");
    file.write_all_at(&lines("orphan", 200_000), 0).expect("a file can be written");
    file.sync_all().expect("a file can be synced");
    fs::remove_file(&path).expect("a file can be removed");
    file
}

/// Packs a cluster's data directory.
///
/// # Panics
/// If tar fails.
pub fn pack(data: &Path, archive: &Path) {
    // A block that was written as zeros is packed as a hole too.
    let sparse = ["--create", "--sparse", "--hole-detection=raw", "--sort=name", "--numeric-owner", "--exclude=./run"];
    let run = Run::new("tar").args(sparse).arg("--xz").env("XZ_OPT", "-9");
    run.arg("--file").arg(archive).arg("--directory").arg(data).arg(".").limit(PACK_LIMIT).ok();
}

/// Unpacks it into an empty directory.
///
/// # Panics
/// If tar fails.
pub fn unpack(archive: &Path, data: &Path) {
    fs::create_dir_all(data).expect("a directory can be made");
    Run::new("tar").args(["--extract", "--xz", "--file"]).arg(archive).arg("--directory").arg(data).ok();
}
