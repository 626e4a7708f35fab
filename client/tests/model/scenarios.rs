//! Faults by name: what was found by reading, each with the interleaving that showed it.

use crate::cluster::{Cluster, Faults, in_virtual_time};
use bytes::Bytes;
use holdfast_client::{
    Error, FileHandle, FileSystem, MountConfig, NewNode, OpenMode, RenameMode, Sabotage, SetAttributes, UnflushedFile,
    WriteAt,
};
use holdfast_common::{InodeId, Owner};
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

pub(crate) fn config(key: &str) -> MountConfig {
    MountConfig {
        volmgr: String::new(),
        volume: "model".into(),
        client_key: key.into(),
        description: key.into(),
        read_only: false,
        memory_bytes: 64 << 20,
        sabotage: Sabotage::None,
    }
}

pub(crate) async fn mount(cluster: &Cluster, key: &str) -> FileSystem {
    mount_by(cluster, config(key)).await
}

pub(crate) async fn mount_by(cluster: &Cluster, config: MountConfig) -> FileSystem {
    FileSystem::mount_over(config, &cluster.volume(), std::sync::Arc::new(cluster.clone()), 1).await.unwrap()
}

pub(crate) const BOTH: OpenMode = OpenMode { read: true, write: true, append: false, sync: false };
pub(crate) const READ: OpenMode = OpenMode { read: true, write: false, append: false, sync: false };

pub(crate) async fn create(fs: &FileSystem, name: &str) -> (InodeId, FileHandle) {
    let (attributes, handle) = fs.create(InodeId::ROOT, name.as_bytes(), 0o644, Owner::ROOT, true, BOTH).await.unwrap();
    (attributes.inode, handle)
}

pub(crate) async fn write(fs: &FileSystem, handle: FileHandle, offset: u64, text: &str) -> Result<(), Error> {
    fs.write(handle, WriteAt::Offset(offset), Bytes::copy_from_slice(text.as_bytes()), false).await
}

pub(crate) async fn read(fs: &FileSystem, handle: FileHandle) -> Vec<u8> {
    fs.read(handle, 0, 1 << 20).await.unwrap().concat()
}

fn named(inode: InodeId, path: &str) -> UnflushedFile {
    UnflushedFile { inode, path: Some(Bytes::copy_from_slice(path.as_bytes())) }
}

#[test]
fn a_write_behind_another_mounts_truncation_lands_on_the_truncated_file() {
    in_virtual_time(async {
        let cluster = Cluster::new(1, 0);
        let (a, b) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
        let (inode, handle) = create(&a, "file").await;
        write(&a, handle, 0, &"1".repeat(10_000)).await.unwrap();
        a.fsync(handle).await.unwrap();
        b.set_attributes(inode, SetAttributes { size_bytes: Some(0), ..SetAttributes::default() }).await.unwrap();
        write(&a, handle, 0, &"2".repeat(5_000)).await.unwrap();
        a.fsync(handle).await.unwrap();
        a.fsync(handle).await.unwrap();
        let other = b.open(inode, READ).await.unwrap();
        assert_eq!(read(&b, other).await, [b'2'; 5_000]);
    });
}

/// The session is lost while a reader has the file open, too.
#[test]
fn every_handle_hears_of_a_lost_write_once_and_closing_one_does_not_take_it_from_another() {
    in_virtual_time(async {
        let cluster = Cluster::new(2, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, writer) = create(&fs, "file").await;
        let reader = fs.open(inode, READ).await.unwrap();
        cluster.state().silent = vec![1, 2, 3, 4];
        write(&fs, writer, 0, "lost").await.unwrap();
        sleep(Duration::from_secs(2)).await;
        cluster.expire(cluster.sessions()[0]);
        sleep(Duration::from_secs(5)).await;
        cluster.state().silent.clear();
        assert_eq!(fs.flush(reader).await, Err(Error::SessionLost));
        fs.release(reader).await.unwrap();
        fs.set_attributes(inode, SetAttributes { mode: Some(0o600), ..SetAttributes::default() }).await.unwrap();
        assert_eq!(fs.flush(writer).await, Err(Error::SessionLost), "close tells of it");
        assert_eq!(fs.fsync(writer).await, Err(Error::SessionLost), "and leaves it to fsync");
        assert_eq!(fs.fsync(writer).await, Ok(()), "which tells it once");
        let later = fs.open(inode, BOTH).await.unwrap();
        assert_eq!(fs.fsync(later).await, Ok(()), "who opened it later lost nothing");
        write(&fs, writer, 0, "kept").await.unwrap();
        fs.fsync(writer).await.unwrap();
        assert_eq!(read(&fs, later).await, b"kept");
    });
}

#[test]
fn a_dropped_write_and_a_dropped_open_give_back_what_they_held() {
    in_virtual_time(async {
        let cluster = Cluster::new(4, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        cluster.state().faults = Faults { puts_fail: 100, ..Faults::default() };
        let mib = || Bytes::from(vec![7; 1 << 20]);
        let mut taken = 0;
        // Until memory is used up, and then some that wait for it.
        for offset in 0..64 {
            let write = fs.write(handle, WriteAt::Offset(offset << 20), mib(), false);
            taken += u64::from(timeout(Duration::from_millis(50), write).await.is_ok());
        }
        assert_eq!(taken, 32, "half of the memory is for written data");
        cluster.state().faults = Faults { unanswered: 100, ..Faults::default() };
        assert!(timeout(Duration::from_millis(20), fs.open(inode, READ)).await.is_err());
        cluster.state().faults = Faults::default();
        fs.fsync(handle).await.unwrap();
        assert_eq!(fs.get_attributes(inode).await.unwrap().size_bytes, taken << 20);
        fs.release(handle).await.unwrap();
        sleep(Duration::from_secs(5)).await;
        assert_eq!(fs.held_bytes(), 0);
    });
}

#[test]
fn a_raised_floor_and_a_vacated_slot_cost_a_writer_nothing_but_time() {
    in_virtual_time(async {
        let cluster = Cluster::new(5, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        write(&fs, handle, 0, "before").await.unwrap();
        fs.fsync(handle).await.unwrap();
        let next = {
            let state = cluster.state();
            crate::cluster::live_chunks(&state.table, inode)[0].0 + 4095
        };
        cluster.raise_floor(next);
        write(&fs, handle, 0, "behind").await.unwrap();
        fs.fsync(handle).await.unwrap();
        for group in [1, 2] {
            cluster.vacate(group, 0);
        }
        // Two members are left of three: a stripe of 1+1 still has its parity.
        write(&fs, handle, 0, "vacant").await.unwrap();
        fs.fsync(handle).await.unwrap();
        assert_eq!(read(&fs, handle).await, b"vacant");
    });
}

#[test]
fn a_floor_in_a_keep_alive_makes_a_writer_leave_its_ids_before_they_are_refused() {
    in_virtual_time(async {
        let cluster = Cluster::new(15, 0);
        let fs = mount(&cluster, "a").await;
        let (_, handle) = create(&fs, "file").await;
        write(&fs, handle, 0, "before").await.unwrap();
        fs.fsync(handle).await.unwrap();
        let next = cluster.state().table.next_chunk().0;
        cluster.raise_floor(next);
        sleep(Duration::from_secs(2)).await;
        let before = cluster.state().shards.len();
        write(&fs, handle, 0, "behind").await.unwrap();
        fs.fsync(handle).await.unwrap();
        let state = cluster.state();
        assert_eq!((state.refused_puts, state.shards.len() - before), (0, 2));
    });
}

/// A leader raises the floor once a minute to where ids were two request deadlines ago.
#[test]
fn a_writer_never_meets_the_floor_that_follows_it() {
    in_virtual_time(async {
        let cluster = Cluster::new(16, 0);
        let fs = mount(&cluster, "a").await;
        let (_, handle) = create(&fs, "file").await;
        let mut marks = Vec::new();
        for second in 0..600 {
            marks.push(cluster.state().table.next_chunk().0);
            if second % 60 == 0 && second >= 120 {
                cluster.raise_floor(marks[second - 120]);
            }
            write(&fs, handle, 0, "again").await.unwrap();
            fs.fsync(handle).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
        let state = cluster.state();
        assert!(state.floor > 20_000, "{}", state.floor);
        assert_eq!((state.refused_puts, state.shards.len()), (0, 600 * 2));
    });
}

#[test]
fn members_that_the_volume_manager_calls_dead_are_used_when_too_few_are_left() {
    in_virtual_time(async {
        let cluster = Cluster::new(6, 0);
        let fs = mount(&cluster, "a").await;
        let (_, handle) = create(&fs, "file").await;
        cluster.state().thought_dead = vec![1, 2, 3, 4];
        sleep(Duration::from_secs(3)).await;
        let begun = Instant::now();
        write(&fs, handle, 0, "all the same").await.unwrap();
        fs.fsync(handle).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert_eq!(read(&fs, handle).await, b"all the same");
    });
}

#[test]
fn without_a_leader_or_members_data_is_kept_and_fsync_fails_at_its_deadline() {
    in_virtual_time(async {
        for headless in [true, false] {
            let cluster = Cluster::new(7, 0);
            let fs = mount(&cluster, "a").await;
            let (_, handle) = create(&fs, "file").await;
            cluster.state().headless = headless;
            cluster.state().silent = if headless { Vec::new() } else { vec![1, 2, 3, 4] };
            write(&fs, handle, 0, "kept").await.unwrap();
            let begun = Instant::now();
            assert!(matches!(fs.fsync(handle).await, Err(Error::TimedOut(_))));
            assert!(begun.elapsed() >= Duration::from_secs(60));
            sleep(Duration::from_secs(300)).await;
            cluster.state().headless = false;
            cluster.state().silent.clear();
            fs.fsync(handle).await.unwrap();
            assert_eq!(read(&fs, handle).await, b"kept");
        }
    });
}

#[test]
fn what_cannot_be_flushed_before_the_end_is_named() {
    in_virtual_time(async {
        let cluster = Cluster::new(8, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        cluster.state().silent = vec![1, 2, 3, 4];
        write(&fs, handle, 0, "never").await.unwrap();
        let ended = fs.shutdown().await;
        assert_eq!(ended, Err(Error::Unflushed(vec![named(inode, "/file")])));
        assert!(ended.unwrap_err().to_string().contains(&format!("/file (inode {inode})")));
    });
}

/// A file that was renamed is told by its number, for its name is not known.
#[test]
fn what_cannot_be_flushed_is_named_by_its_path_however_it_was_opened() {
    in_virtual_time(async {
        let cluster = Cluster::new(19, 0);
        let (fs, other) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
        let mut directory = InodeId::ROOT;
        for name in ["upper", "lower"] {
            directory =
                fs.create_node(directory, name.as_bytes(), NewNode::Directory, 0o755, Owner::ROOT).await.unwrap().inode;
        }
        let make =
            |name: &'static str| other.create_node(directory, name.as_bytes(), NewNode::File, 0o644, Owner::ROOT);
        let mut unflushed = Vec::new();
        for name in ["opened", "renamed"] {
            make(name).await.unwrap();
            let inode = fs.lookup(directory, name.as_bytes()).await.unwrap().inode;
            unflushed.push((inode, fs.open(inode, BOTH).await.unwrap()));
        }
        let (made, handle) = fs.create(directory, b"made", 0o644, Owner::ROOT, true, BOTH).await.unwrap();
        unflushed.push((made.inode, handle));
        let replace = RenameMode::Replace;
        other.rename(directory, b"renamed", directory, b"elsewhere", replace).await.unwrap();
        other.rename(InodeId::ROOT, b"upper", InodeId::ROOT, b"top", replace).await.unwrap();
        cluster.state().silent = vec![1, 2, 3, 4];
        for (_, handle) in &unflushed {
            write(&fs, *handle, 0, "never").await.unwrap();
        }
        let [opened, renamed, made] = [0, 1, 2].map(|at| unflushed[at].0);
        let expected = vec![
            named(opened, "/top/lower/opened"),
            UnflushedFile { inode: renamed, path: None },
            named(made, "/top/lower/made"),
        ];
        assert_eq!(fs.shutdown().await, Err(Error::Unflushed(expected)));
    });
}

#[test]
fn quota_is_refused_at_write_and_never_at_fsync() {
    in_virtual_time(async {
        let cluster = Cluster::new(9, 10 * 4096);
        let fs = mount(&cluster, "a").await;
        let (_, handle) = create(&fs, "file").await;
        for page in 0..10 {
            write(&fs, handle, page * 4096, &"q".repeat(4096)).await.unwrap();
        }
        assert_eq!(write(&fs, handle, 10 * 4096, "q").await, Err(Error::Quota));
        // What is mapped already takes nothing more.
        write(&fs, handle, 3 * 4096, &"r".repeat(4096)).await.unwrap();
        fs.fsync(handle).await.unwrap();
    });
}

#[test]
fn a_full_disk_is_told_at_write() {
    in_virtual_time(async {
        let cluster = Cluster::new(10, 0);
        cluster.state().free_bytes = 64 << 10;
        let fs = mount(&cluster, "a").await;
        let (_, handle) = create(&fs, "file").await;
        write(&fs, handle, 0, &"s".repeat(64 << 10)).await.unwrap();
        let refused = fs.write(handle, WriteAt::Offset(1 << 20), Bytes::from(vec![1; 1 << 20]), false).await;
        assert_eq!(refused, Err(Error::NoSpace));
        fs.fsync(handle).await.unwrap();
    });
}

/// A change of an inode and a commit of it never pass each other, whatever is sent again.
#[test]
fn a_truncation_and_writes_around_it_keep_their_order_when_answers_are_lost() {
    in_virtual_time(async {
        for seed in 0..40 {
            let cluster = Cluster::new(seed, 0);
            let fs = mount(&cluster, "a").await;
            let (inode, handle) = create(&fs, "file").await;
            cluster.state().faults = Faults { unanswered: 40, lost: 20, ..Faults::default() };
            write(&fs, handle, 0, "before the cut").await.unwrap();
            let cut = SetAttributes { size_bytes: Some(3), ..SetAttributes::default() };
            fs.set_attributes(inode, cut).await.unwrap();
            write(&fs, handle, 5, "x").await.unwrap();
            fs.fsync(handle).await.unwrap();
            assert_eq!(read(&fs, handle).await, b"bef\0\0x", "seed {seed}");
        }
    });
}

#[test]
fn maps_of_files_stay_within_their_budget() {
    in_virtual_time(async {
        let cluster = Cluster::new(11, 0);
        let fs = mount(&cluster, "a").await;
        let (_, handle) = create(&fs, "file").await;
        let mut most = 0;
        for round in 0..3000u64 {
            write(&fs, handle, round % 8 * 4096, "again").await.unwrap();
            fs.fsync(handle).await.unwrap();
            most = most.max(fs.held_bytes());
        }
        assert!(most < 8192, "{most} bytes for eight extents");
    });
}

/// Interleaving: the truncation of a file that nobody has open is lost on its way, its caller gives up, and the file is opened and
/// written before the truncation is sent again.
#[test]
fn a_change_of_a_file_that_is_not_open_never_passes_what_is_written_later() {
    in_virtual_time(async {
        let cluster = Cluster::new(13, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        write(&fs, handle, 0, "former content").await.unwrap();
        fs.release(handle).await.unwrap();
        cluster.state().faults = Faults { lost: 100, ..Faults::default() };
        let cut = SetAttributes { size_bytes: Some(0), ..SetAttributes::default() };
        assert!(timeout(Duration::from_millis(100), fs.set_attributes(inode, cut)).await.is_err());
        cluster.state().faults = Faults::default();
        let handle = fs.open(inode, BOTH).await.unwrap();
        write(&fs, handle, 0, "later").await.unwrap();
        fs.fsync(handle).await.unwrap();
        sleep(Duration::from_secs(10)).await;
        assert_eq!(read(&fs, handle).await, b"later");
        let other = mount(&cluster, "b").await;
        let seen = other.open(inode, READ).await.unwrap();
        assert_eq!(read(&other, seen).await, b"later");
    });
}

/// Interleaving: giving back unused quota is lost on its way while a writer raises it; sent again, it must not take the raise back.
#[test]
fn quota_that_is_given_back_late_does_not_take_a_later_raise_back() {
    in_virtual_time(async {
        let cluster = Cluster::new(14, 2 << 20);
        let (a, b) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
        let (_, handle) = create(&a, "file").await;
        write(&a, handle, 0, "first").await.unwrap();
        a.fsync(handle).await.unwrap();
        cluster.state().faults = Faults { lost: 100, ..Faults::default() };
        sleep(Duration::from_millis(1500)).await;
        cluster.state().faults = Faults::default();
        write(&a, handle, 0, &"second".repeat(10_000)).await.unwrap();
        // The other one takes whatever is left.
        let (_, other) = create(&b, "other").await;
        let mut taken = 0;
        while write(&b, other, taken << 16, &"x".repeat(1 << 16)).await.is_ok() {
            taken += 1;
        }
        assert!((1..32).contains(&taken), "{taken}");
        a.fsync(handle).await.unwrap();
        b.fsync(other).await.unwrap();
    });
}

/// An outcome whose caller is gone: the handle is closed, and the lost write told to the next who asks.
#[test]
fn what_a_caller_that_is_gone_was_to_be_told_is_not_lost() {
    in_virtual_time(async {
        for wait_us in (0..4000).step_by(40) {
            let cluster = Cluster::new(15, 0);
            let fs = mount(&cluster, "a").await;
            let (inode, writer) = create(&fs, "file").await;
            cluster.state().silent = vec![1, 2, 3, 4];
            write(&fs, writer, 0, "lost").await.unwrap();
            sleep(Duration::from_secs(2)).await;
            cluster.expire(cluster.sessions()[0]);
            sleep(Duration::from_secs(5)).await;
            let patience = Duration::from_micros(wait_us);
            let first = timeout(patience, fs.fsync(writer)).await;
            let told = matches!(first, Ok(Err(Error::SessionLost)));
            assert_eq!(fs.fsync(writer).await.is_err(), !told, "after {wait_us} us");
            let _ = timeout(patience, fs.open(inode, READ)).await;
            fs.release(writer).await.unwrap();
            sleep(Duration::from_secs(10)).await;
            assert_eq!(fs.held_bytes(), 0);
        }
    });
}

#[test]
fn after_its_end_a_mount_asks_for_no_session_and_every_call_fails() {
    in_virtual_time(async {
        let cluster = Cluster::new(17, 0);
        let fs = mount(&cluster, "a").await;
        fs.shutdown().await.unwrap();
        sleep(Duration::from_secs(60)).await;
        assert!(cluster.sessions().is_empty());
        assert_eq!(fs.get_attributes(InodeId::ROOT).await.err(), Some(Error::SessionLost));
    });
}

#[test]
fn a_loss_during_the_last_flush_is_named() {
    in_virtual_time(async {
        let cluster = Cluster::new(18, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        cluster.state().silent = vec![1, 2, 3, 4];
        write(&fs, handle, 0, "lost").await.unwrap();
        let ending = tokio::spawn({
            let fs = fs.clone();
            async move { fs.shutdown().await }
        });
        sleep(Duration::from_secs(2)).await;
        cluster.expire(cluster.sessions()[0]);
        assert_eq!(ending.await.unwrap(), Err(Error::Unflushed(vec![named(inode, "/file")])));
    });
}
