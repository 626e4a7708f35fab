//! The directory of an `up` cluster: what is where, and the superblock that says that it is one.
//!
//! ```text
//! DIR/superblock    format version, cluster, counts of nodes
//! DIR/lock          held while a cluster runs
//! DIR/volmgr        the volume manager
//! DIR/meta-1 ...    metanodes
//! DIR/data-1 ...    datanodes, each with a directory `disk`
//! DIR/run           while every role is a process of its own: ROLE-INDEX.pid, indices from 0
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use holdfast_common::ClusterId;
use holdfast_datanode::{DiskSuperblock, NODE_KIND};
use holdfast_node::NodeSuperblock;
use holdfast_node::superblock::{self, FILE_NAME, Kind};
use holdfast_proto::cluster::UpSuperblock;

/// Superblock of an `up` directory.
const KIND: Kind = Kind::superblock(*b"HOLDFSUP", "the directory of a cluster made by 'holdfast up'");

/// The paths of a cluster's directory.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    dir: PathBuf,
}

/// A cluster's directory, as its superblock describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// `None`: its first `up` did not get as far as a cluster.
    pub(crate) cluster: Option<ClusterId>,
    pub(crate) metanodes: u32,
    pub(crate) datanodes: u32,
}

impl Layout {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn volmgr(&self) -> PathBuf {
        self.dir.join("volmgr")
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.dir.join("run")
    }

    /// By index from 0; the names count from 1.
    pub(crate) fn metanode(&self, index: u32) -> PathBuf {
        self.dir.join(format!("meta-{}", index + 1))
    }

    pub(crate) fn datanode(&self, index: u32) -> PathBuf {
        self.dir.join(format!("data-{}", index + 1))
    }

    pub(crate) fn disk(&self, index: u32) -> PathBuf {
        self.datanode(index).join("disk")
    }

    /// Reads the superblock; `None` if the directory is missing or empty.
    pub(crate) fn read(&self) -> Result<Option<Record>> {
        match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
                bail!("{} is not a directory", self.dir.display())
            }
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", self.dir.display())),
            Ok(mut entries) => {
                if entries.next().is_none() {
                    return Ok(None);
                }
            }
        }
        if !superblock::exists(&self.dir) {
            bail!("{} is neither empty nor {}: choose another --dir", self.dir.display(), KIND.name);
        }
        let record: UpSuperblock = superblock::read(&self.dir, KIND)?;
        let cluster = match record.cluster.len() {
            0 => None,
            _ => Some(ClusterId(
                <[u8; 16]>::try_from(&record.cluster[..])
                    .ok()
                    .with_context(|| format!("the superblock of {} names no cluster", self.dir.display()))?,
            )),
        };
        let record = Record { cluster, metanodes: record.metanodes_count, datanodes: record.datanodes_count };
        self.check_roles(&record)?;
        Ok(Some(record))
    }

    /// Every role inside must be of the same cluster and of a known format, before any of them is started and changed:
    /// somebody may have moved directories about, or a newer program may have run here.
    fn check_roles(&self, record: &Record) -> Result<()> {
        let Some(cluster) = record.cluster else { return Ok(()) };
        self.check_cluster(cluster, &self.volmgr(), Some(holdfast_volmgr::cluster_of(&self.volmgr())?))?;
        for dir in (0..record.metanodes).map(|index| self.metanode(index)).filter(|dir| superblock::exists(dir)) {
            self.check_cluster(cluster, &dir, holdfast_metanode::cluster_of(&dir)?)?;
        }
        for index in (0..record.datanodes).filter(|index| superblock::exists(&self.datanode(*index))) {
            let (dir, disk) = (self.datanode(index), self.disk(index));
            self.check_cluster(cluster, &dir, NodeSuperblock::read(&dir, NODE_KIND)?.cluster())?;
            self.check_cluster(cluster, &disk, DiskSuperblock::read(&disk)?.cluster())?;
        }
        Ok(())
    }

    fn check_cluster(&self, cluster: ClusterId, dir: &Path, inside: Option<ClusterId>) -> Result<()> {
        match inside {
            Some(inside) if inside != cluster => bail!(
                "{} belongs to cluster {inside}, but {} is of cluster {cluster}: a directory of another cluster was put there",
                dir.display(),
                self.dir.display()
            ),
            _ => Ok(()),
        }
    }

    pub(crate) fn write(&self, record: &Record) -> Result<()> {
        let record = UpSuperblock {
            cluster: record.cluster.map(|c| c.0.to_vec()).unwrap_or_default().into(),
            metanodes_count: record.metanodes,
            datanodes_count: record.datanodes,
        };
        Ok(superblock::write(&self.dir, KIND, &record)?)
    }

    /// Removes the cluster's files, the superblock and the lock last, so that an interrupted removal can be repeated.
    /// Answers whether the directory is empty now; what is not the cluster's stays.
    pub(crate) fn remove_contents(&self) -> Result<bool> {
        for entry in std::fs::read_dir(&self.dir).with_context(|| format!("cannot read {}", self.dir.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if is_role_directory(&name) {
                let path = entry.path();
                std::fs::remove_dir_all(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        for name in [FILE_NAME, "superblock.tmp", "lock"] {
            match std::fs::remove_file(self.dir.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot remove {name} in {}", self.dir.display()));
                }
                _ => {}
            }
        }
        Ok(std::fs::read_dir(&self.dir)?.next().is_none())
    }
}

/// Whether `up` makes a directory of this name.
fn is_role_directory(name: &str) -> bool {
    let numbered = |prefix: &str| {
        name.strip_prefix(prefix).is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    };
    name == "volmgr" || name == "run" || numbered("meta-") || numbered("data-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_up_made_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        for name in ["volmgr", "run", "meta-1", "data-12", "data-x", "meta-", "mine"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        layout.write(&Record { cluster: None, metanodes: 3, datanodes: 6 }).unwrap();
        assert!(!layout.remove_contents().unwrap());
        let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["data-x", "meta-", "mine"]);
    }

    #[test]
    fn directories_that_are_no_cluster_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let layout = |name: &str| Layout::new(dir.path().join(name));
        assert_eq!(layout("missing").read().unwrap(), None);
        std::fs::create_dir(dir.path().join("empty")).unwrap();
        assert_eq!(layout("empty").read().unwrap(), None);
        std::fs::write(dir.path().join("file"), b"x").unwrap();
        assert!(layout("file").read().unwrap_err().to_string().ends_with("is not a directory"));
        std::fs::create_dir_all(dir.path().join("full/x")).unwrap();
        assert!(layout("full").read().unwrap_err().to_string().contains("is neither empty nor"));
        let unfinished = Record { cluster: None, metanodes: 3, datanodes: 6 };
        layout("empty").write(&unfinished).unwrap();
        assert_eq!(layout("empty").read().unwrap(), Some(unfinished));
    }

    #[test]
    fn a_newer_format_and_a_volume_manager_of_another_cluster_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path().to_owned());
        superblock::write(dir.path(), Kind { version: 9, ..KIND }, &UpSuperblock::default()).unwrap();
        let error = layout.read().unwrap_err().to_string();
        assert!(error.contains("has format version 9, this program knows up to 1"), "{error}");
        let cluster = holdfast_volmgr::format(&layout.volmgr()).unwrap();
        let record = Record { cluster: Some(cluster), metanodes: 3, datanodes: 6 };
        layout.write(&record).unwrap();
        assert_eq!(layout.read().unwrap(), Some(record.clone()));
        layout.write(&Record { cluster: Some(ClusterId([9; 16])), ..record }).unwrap();
        let error = layout.read().unwrap_err().to_string();
        assert!(error.contains("of another cluster"), "{error}");
    }
}
