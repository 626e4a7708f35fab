//! What a tree is, to the last bit that a backup would keep: kinds, modes, owners, times, links, attributes, content.
//! Two manifests that are equal are the same tree.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fmt::Write as _;
use std::fs::Metadata;
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// One name of a tree. Directories' sizes, link counts and times are left out where file systems rightly differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `file`, `directory`, `symlink` or what else it is.
    pub kind: &'static str,
    /// Permission bits.
    pub mode: u32,
    /// User and group.
    pub owner: (u32, u32),
    /// Modification time: seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Size of a file.
    pub size: Option<u64>,
    /// Names of a file.
    pub links: Option<u64>,
    /// Hash of a file's content; what a symlink says; a device's number.
    pub content: String,
    /// Extended attributes.
    pub attributes: BTreeMap<OsString, Vec<u8>>,
}

/// A whole tree, by path below its top.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest(pub BTreeMap<PathBuf, Entry>);

impl Manifest {
    /// Reads a tree, every byte of it.
    ///
    /// # Panics
    /// If anything cannot be read.
    #[track_caller]
    #[must_use]
    pub fn of(top: &Path) -> Self {
        let mut manifest = Self::default();
        manifest.add(top, Path::new(""));
        manifest
    }

    #[track_caller]
    fn add(&mut self, top: &Path, below: &Path) {
        let directory = top.join(below);
        let entries = std::fs::read_dir(&directory).unwrap_or_else(|e| panic!("{}: {e}", directory.display()));
        for entry in entries {
            let name = entry.unwrap_or_else(|e| panic!("{}: {e}", directory.display())).file_name();
            let path = below.join(name);
            let full = top.join(&path);
            let entry = Entry::of(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
            let is_directory = entry.kind == "directory";
            self.0.insert(path.clone(), entry);
            if is_directory {
                self.add(top, &path);
            }
        }
    }

    /// One line a name, in the order of the names: what a later build is compared with.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for (path, entry) in &self.0 {
            let _ = writeln!(text, "{} {entry}", path.as_os_str().as_bytes().escape_ascii());
        }
        text
    }

    /// The first differences from another tree, for a failure's message; empty if there are none.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        const SHOWN: usize = 20;
        let names: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        names
            .into_iter()
            .filter(|name| self.0.get(*name) != other.0.get(*name))
            .map(|name| format!("{}: {:?} / {:?}", name.display(), self.0.get(name), other.0.get(name)))
            .take(SHOWN)
            .collect()
    }

    /// Demands that two trees are the same.
    ///
    /// # Panics
    /// With the first differences, if they are not.
    #[track_caller]
    pub fn assert_same(&self, other: &Self, what: &str) {
        let differences = self.differences(other);
        assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
    }
}

impl Entry {
    fn of(path: &Path) -> std::io::Result<Self> {
        let metadata = path.symlink_metadata()?;
        let (kind, content) = kind_and_content(path, &metadata)?;
        let is_directory = kind == "directory";
        Ok(Self {
            kind,
            mode: metadata.mode() & 0o7777,
            owner: (metadata.uid(), metadata.gid()),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            size: (kind == "file").then_some(metadata.len()),
            links: (!is_directory).then(|| metadata.nlink()),
            content,
            attributes: attributes(path)?,
        })
    }
}

fn kind_and_content(path: &Path, metadata: &Metadata) -> std::io::Result<(&'static str, String)> {
    let kind = metadata.file_type();
    Ok(if kind.is_dir() {
        ("directory", String::new())
    } else if kind.is_symlink() {
        ("symlink", format!("{}", std::fs::read_link(path)?.display()))
    } else if kind.is_file() {
        ("file", content_hash(path)?)
    } else if kind.is_fifo() {
        ("fifo", String::new())
    } else if kind.is_socket() {
        ("socket", String::new())
    } else {
        ("device", format!("{:x}", metadata.rdev()))
    })
}

/// BLAKE3 of a file's bytes, in hexadecimal digits.
///
/// # Errors
/// If it cannot be read.
pub fn content_hash(path: &Path) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finalize().to_hex().to_string());
        }
        hasher.update(&buffer[..read]);
    }
}

fn attributes(path: &Path) -> std::io::Result<BTreeMap<OsString, Vec<u8>>> {
    let names = crate::attribute::list(path)?;
    names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| Ok((OsString::from_vec(name.to_vec()), crate::attribute::get(path, name)?)))
        .collect()
}

/// `file mode=644 owner=0:0 mtime=1.000000002 size=3 links=1 content=... user.a=\x00`
impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ((user, group), (seconds, nanoseconds)) = (self.owner, self.mtime);
        write!(f, "{} mode={:o} owner={user}:{group} mtime={seconds}.{nanoseconds:09}", self.kind, self.mode)?;
        if let Some(size) = self.size {
            write!(f, " size={size}")?;
        }
        if let Some(links) = self.links {
            write!(f, " links={links}")?;
        }
        if !self.content.is_empty() {
            write!(f, " content={}", self.content.escape_debug())?;
        }
        for (name, value) in &self.attributes {
            write!(f, " {}={}", name.as_bytes().escape_ascii(), value.escape_ascii())?;
        }
        Ok(())
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} names", self.0.len())
    }
}
