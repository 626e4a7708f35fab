//! Metanodes that `up` does without, because they lost their log: it notices when somebody has brought one back.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Paths of a metanode's directory that change when it is brought back, or its log is put back where it was.
const CHANGING: [&str; 3] = ["superblock", "consensus", "consensus/log"];

/// Waits until something about a metanode's log has changed, so that it is worth trying again.
pub(crate) async fn log_changes(dir: &Path) {
    let before = look(dir);
    while look(dir) == before {
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// Inode and time of change of each file that is there.
fn look(dir: &Path) -> [Option<(u64, i64, i64)>; 3] {
    CHANGING.map(|name| {
        let about = std::fs::metadata(dir.join(name)).ok()?;
        Some((about.ino(), about.mtime(), about.mtime_nsec()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_superblock_that_is_replaced_and_a_log_that_comes_back_are_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let same = look(path);
        assert_eq!(look(path), same);
        holdfast_storage::replace_file(&path.join("superblock"), b"one").unwrap();
        let with_superblock = look(path);
        assert_ne!(with_superblock, same);
        holdfast_storage::replace_file(&path.join("superblock"), b"two").unwrap();
        assert_ne!(look(path), with_superblock);
        let waiting = log_changes(path);
        tokio::pin!(waiting);
        tokio::select! {
            biased;
            () = &mut waiting => panic!("nothing has changed"),
            () = std::future::ready(()) => {}
        }
        std::fs::create_dir_all(path.join("consensus/log")).unwrap();
        tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap();
    }
}
