//! Names and attributes through the library: what each call answers, and what it leaves as it was when it refuses.

use crate::cluster::{Cluster, in_virtual_time};
use crate::scenarios::{BOTH, READ, config, create, mount, mount_by, read, write};
use bytes::Bytes;
use holdfast_client::{
    Error, FallocateMode, FileSystem, MountConfig, NewNode, NodeKind, RenameMode, SetAttributes, SetTime, Whence,
    XattrMode,
};
use holdfast_common::limits::{CAPABILITY_XATTR, FILE_BYTES_MAX};
use holdfast_common::{InodeId, Owner};
use std::collections::BTreeSet;

const ROOT: InodeId = InodeId::ROOT;

fn errno<T: std::fmt::Debug>(outcome: Result<T, Error>) -> i32 {
    outcome.expect_err("a refusal").errno()
}

async fn directory(fs: &FileSystem, parent: InodeId, name: &str) -> InodeId {
    fs.create_node(parent, name.as_bytes(), NewNode::Directory, 0o755, Owner::ROOT).await.unwrap().inode
}

async fn names(fs: &FileSystem, directory: InodeId) -> Vec<String> {
    let entries = fs.read_directory(directory, 0, 1000, false).await.unwrap();
    let mut names: Vec<_> = entries.iter().map(|entry| String::from_utf8(entry.name.to_vec()).unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_read_only_mount_reads_and_refuses_every_change_without_asking() {
    in_virtual_time(async {
        let cluster = Cluster::new(80, 0);
        let writer = mount(&cluster, "a").await;
        let (inode, handle) = create(&writer, "file").await;
        write(&writer, handle, 0, "text").await.unwrap();
        writer.release(handle).await.unwrap();
        let fs = mount_by(&cluster, MountConfig { read_only: true, ..config("b") }).await;
        let handle = fs.open(inode, READ).await.unwrap();
        assert_eq!(read(&fs, handle).await, b"text");
        let executed = cluster.state().executed;
        let set = SetAttributes { mode: Some(0), ..SetAttributes::default() };
        let (name, value) = (b"user.name", Bytes::from_static(b"value"));
        let refusals = [
            fs.create(ROOT, b"new", 0o644, Owner::ROOT, false, BOTH).await.map(|_| ()),
            fs.create_node(ROOT, b"new", NewNode::Fifo, 0o644, Owner::ROOT).await.map(|_| ()),
            fs.open(inode, BOTH).await.map(|_| ()),
            fs.set_attributes(inode, set).await.map(|_| ()),
            fs.link(inode, ROOT, b"new").await.map(|_| ()),
            fs.unlink(ROOT, b"file").await,
            fs.remove_directory(ROOT, b"file").await,
            fs.rename(ROOT, b"file", ROOT, b"new", RenameMode::Replace).await,
            fs.set_xattr(inode, name, value, XattrMode::Any).await,
            fs.set_xattr(inode, CAPABILITY_XATTR, Bytes::new(), XattrMode::Any).await,
            fs.remove_xattr(inode, name).await,
        ];
        assert_eq!(refusals, [const { Err(Error::ReadOnly) }; 11]);
        assert_eq!(write(&fs, handle, 0, "x").await, Err(Error::BadHandle));
        assert_eq!(fs.fallocate(handle, 0, 1, FallocateMode::PunchHole).await, Err(Error::BadHandle));
        assert_eq!(cluster.state().executed, executed);
    });
}

#[test]
fn a_directory_is_listed_in_pages_each_name_once_while_it_changes() {
    in_virtual_time(async {
        let cluster = Cluster::new(81, 0);
        let fs = mount(&cluster, "a").await;
        let parent = directory(&fs, ROOT, "many").await;
        for at in 0..100 {
            fs.create_node(parent, format!("{at:03}").as_bytes(), NewNode::File, 0o644, Owner::ROOT).await.unwrap();
        }
        let (mut seen, mut cookie, mut page) = (BTreeSet::new(), 0, 0);
        loop {
            let entries = fs.read_directory(parent, cookie, 7, true).await.unwrap();
            let Some(last) = entries.last() else { break };
            assert!(entries.len() <= 7 && last.cookie >= 16 && last.cookie > cookie);
            cookie = last.cookie;
            for entry in &entries {
                assert!(seen.insert(entry.name.clone()), "{:?} twice", entry.name);
                let attributes = entry.attributes.expect("asked for");
                assert_eq!((attributes.inode, attributes.kind), (entry.inode, NodeKind::File));
            }
            // What was listed goes, and so does what was not.
            fs.unlink(parent, &entries[0].name).await.unwrap();
            page += 1;
            let _ = fs.unlink(parent, format!("{:03}", 99 - page).as_bytes()).await;
        }
        let always: Vec<_> = (0..80).map(|at| Bytes::from(format!("{at:03}"))).collect();
        assert!(always.iter().all(|name| seen.contains(name)), "what stays is not left out");
        let plain = fs.read_directory(parent, 0, 3, false).await.unwrap();
        assert!(plain.iter().all(|entry| entry.attributes.is_none()));
    });
}

#[test]
fn a_rename_does_what_its_mode_says_or_nothing() {
    in_virtual_time(async {
        let cluster = Cluster::new(82, 0);
        let fs = mount(&cluster, "a").await;
        let (one, _) = create(&fs, "one").await;
        let (two, _) = create(&fs, "two").await;
        let (upper, lower) = (directory(&fs, ROOT, "upper").await, directory(&fs, ROOT, "lower").await);
        let rename = |from: &'static str, to: &'static str, mode| {
            let fs = fs.clone();
            async move { fs.rename(ROOT, from.as_bytes(), ROOT, to.as_bytes(), mode).await }
        };
        assert_eq!(errno(rename("one", "two", RenameMode::NoReplace).await), libc::EEXIST);
        assert_eq!(errno(rename("none", "two", RenameMode::Replace).await), libc::ENOENT);
        assert_eq!(errno(rename("one", "none", RenameMode::Exchange).await), libc::ENOENT);
        assert_eq!(errno(rename("one", "upper", RenameMode::Replace).await), libc::EISDIR);
        assert_eq!(errno(rename("upper", "one", RenameMode::Replace).await), libc::ENOTDIR);
        let within = fs.rename(ROOT, b"upper", upper, b"self", RenameMode::Replace).await;
        assert_eq!(errno(within), libc::EINVAL);
        assert_eq!(names(&fs, ROOT).await, ["lower", "one", "two", "upper"]);
        rename("one", "two", RenameMode::Exchange).await.unwrap();
        assert_eq!(fs.lookup(ROOT, b"one").await.unwrap().inode, two);
        assert_eq!(fs.lookup(ROOT, b"two").await.unwrap().inode, one);
        fs.rename(ROOT, b"one", lower, b"moved", RenameMode::NoReplace).await.unwrap();
        assert_eq!(errno(rename("upper", "lower", RenameMode::Replace).await), libc::ENOTEMPTY);
        rename("lower", "upper", RenameMode::Replace).await.unwrap();
        assert_eq!(
            (names(&fs, ROOT).await, names(&fs, lower).await),
            (vec!["two".into(), "upper".into()], vec!["moved".into()])
        );
        assert_eq!(fs.lookup(lower, b"..").await.unwrap().inode, ROOT);
    });
}

#[test]
fn extended_attributes_are_made_replaced_listed_and_removed() {
    in_virtual_time(async {
        let cluster = Cluster::new(83, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, _) = create(&fs, "file").await;
        let set = |name: &'static str, value: &'static str, mode| {
            let fs = fs.clone();
            async move { fs.set_xattr(inode, name.as_bytes(), value.into(), mode).await }
        };
        assert_eq!(errno(set("user.a", "1", XattrMode::Replace).await), libc::ENODATA);
        set("user.a", "1", XattrMode::Create).await.unwrap();
        assert_eq!(errno(set("user.a", "2", XattrMode::Create).await), libc::EEXIST);
        set("user.a", "3", XattrMode::Replace).await.unwrap();
        set("trusted.b", "", XattrMode::Any).await.unwrap();
        assert_eq!(errno(set("nobody.c", "4", XattrMode::Any).await), libc::EOPNOTSUPP);
        assert_eq!(fs.get_xattr(inode, b"user.a").await.unwrap(), "3");
        let mut list = fs.list_xattr(inode).await.unwrap();
        list.sort();
        assert_eq!(list, ["trusted.b", "user.a"]);
        fs.remove_xattr(inode, b"user.a").await.unwrap();
        assert_eq!(errno(fs.remove_xattr(inode, b"user.a").await), libc::ENODATA);
        assert_eq!(errno(fs.get_xattr(inode, b"user.a").await), libc::ENODATA);
    });
}

/// The kernel asks before the first write to every file; a wrong answer would leave a capability on a changed program.
#[test]
fn capabilities_are_known_without_asking_of_a_new_file_only_and_set_behind_what_was_written() {
    in_virtual_time(async {
        let cluster = Cluster::new(84, 0);
        let (fs, other) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
        let (inode, handle) = create(&fs, "program").await;
        cluster.state().headless = true;
        assert_eq!(errno(fs.get_xattr(inode, CAPABILITY_XATTR).await), libc::ENODATA, "nobody was asked");
        cluster.state().headless = false;
        write(&fs, handle, 0, "code").await.unwrap();
        fs.set_xattr(inode, CAPABILITY_XATTR, "cap".into(), XattrMode::Any).await.unwrap();
        assert_eq!(fs.get_xattr(inode, CAPABILITY_XATTR).await.unwrap(), "cap", "the commit came before it");
        assert_eq!(other.get_xattr(inode, CAPABILITY_XATTR).await.unwrap(), "cap");
        let opened = other.open(inode, BOTH).await.unwrap();
        write(&other, opened, 0, "CODE").await.unwrap();
        other.fsync(opened).await.unwrap();
        assert_eq!(errno(fs.get_xattr(inode, CAPABILITY_XATTR).await), libc::ENODATA, "a write takes it");
    });
}

#[test]
fn nodes_of_every_kind_are_what_they_were_made() {
    in_virtual_time(async {
        let cluster = Cluster::new(85, 0);
        let fs = mount(&cluster, "a").await;
        let owner = Owner { uid: 7, gid: 8 };
        let kinds = [
            (NewNode::File, NodeKind::File, 0),
            (NewNode::Directory, NodeKind::Directory, 0),
            (NewNode::Symlink("../else where".into()), NodeKind::Symlink, 0),
            (NewNode::Fifo, NodeKind::Fifo, 0),
            (NewNode::Socket, NodeKind::Socket, 0),
            (NewNode::CharDevice(0x103), NodeKind::CharDevice, 0x103),
            (NewNode::BlockDevice(0x801), NodeKind::BlockDevice, 0x801),
        ];
        for (number, (node, kind, rdev)) in kinds.into_iter().enumerate() {
            let name = number.to_string();
            let made = fs.create_node(ROOT, name.as_bytes(), node.clone(), 0o4751, owner).await.unwrap();
            let seen = fs.lookup(ROOT, name.as_bytes()).await.unwrap();
            assert_eq!(seen, made);
            assert_eq!((seen.kind, seen.rdev, seen.uid, seen.gid), (kind, rdev, 7, 8), "{node:?}");
            let target = fs.read_link(made.inode).await;
            match node {
                NewNode::Symlink(wanted) => assert_eq!(target, Ok(wanted)),
                _ => assert_eq!(errno(target), libc::EINVAL, "{kind:?}"),
            }
            let again = fs.create_node(ROOT, name.as_bytes(), NewNode::File, 0o644, owner).await;
            assert_eq!(errno(again), libc::EEXIST);
        }
    });
}

/// A flush that comes later must not move a time that was set.
#[test]
fn times_and_modes_that_are_set_stand_over_what_was_written_before() {
    in_virtual_time(async {
        let cluster = Cluster::new(86, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        fs.write(handle, holdfast_client::WriteAt::Offset(0), "text".into(), true).await.unwrap();
        let set = SetAttributes {
            mode: Some(0o4755),
            atime: Some(SetTime::At(11)),
            mtime: Some(SetTime::At(22)),
            ..SetAttributes::default()
        };
        let shown = fs.set_attributes(inode, set).await.unwrap();
        fs.fsync(handle).await.unwrap();
        let seen = fs.get_attributes(inode).await.unwrap();
        assert_eq!((seen.mode, seen.atime_ns, seen.mtime_ns, seen.size_bytes), (0o4755, 11, 22, 4));
        assert_eq!((shown.mode, shown.mtime_ns), (0o4755, 22));
        let now = SetAttributes { mtime: Some(SetTime::Now), ..SetAttributes::default() };
        assert!(fs.set_attributes(inode, now).await.unwrap().mtime_ns >= 1_000_000_000, "the table's time");
        let nothing = fs.set_attributes(inode, SetAttributes::default()).await.unwrap();
        assert_eq!((nothing.mode, nothing.atime_ns), (0o4755, 11));
    });
}

#[test]
fn a_range_that_is_allocated_punched_or_zeroed_reads_as_zeros_and_moves_the_end_as_told() {
    in_virtual_time(async {
        let cluster = Cluster::new(87, 0);
        let fs = mount(&cluster, "a").await;
        let (inode, handle) = create(&fs, "file").await;
        write(&fs, handle, 0, &"x".repeat(10_000)).await.unwrap();
        let size = async || fs.get_attributes(inode).await.unwrap().size_bytes;
        fs.fallocate(handle, 8192, 8192, FallocateMode::Allocate { keep_size: true }).await.unwrap();
        assert_eq!(size().await, 10_000);
        fs.fallocate(handle, 8192, 8192, FallocateMode::Allocate { keep_size: false }).await.unwrap();
        assert_eq!(size().await, 16_384);
        // What is dirty is punched, too; what is written later is not.
        write(&fs, handle, 4096, "dirty").await.unwrap();
        fs.fallocate(handle, 4096, 4096, FallocateMode::PunchHole).await.unwrap();
        write(&fs, handle, 4100, "later").await.unwrap();
        fs.fallocate(handle, 16_000, 1000, FallocateMode::ZeroRange { keep_size: false }).await.unwrap();
        let wanted = [&[b'x'; 4096][..], &[0; 4], b"later", &[0; 4087], &[b'x'; 1808], &[0; 7000]].concat();
        assert_eq!(size().await, 17_000);
        assert!(read(&fs, handle).await == wanted);
        assert_eq!(fs.seek(handle, 0, Whence::Data).await, Ok(0));
        assert_eq!(fs.seek(handle, 20_000, Whence::Data).await, Err(Error::NoSuchOffset));
        let beyond = fs.fallocate(handle, FILE_BYTES_MAX, 1, FallocateMode::PunchHole).await;
        assert_eq!(beyond, Err(Error::FileTooLarge));
        cluster.state().table.check().unwrap();
    });
}

#[test]
fn a_walk_goes_as_far_as_there_are_directories() {
    in_virtual_time(async {
        let cluster = Cluster::new(88, 0);
        let fs = mount(&cluster, "a").await;
        let upper = directory(&fs, ROOT, "upper").await;
        let lower = directory(&fs, upper, "lower").await;
        fs.create_node(lower, b"file", NewNode::File, 0o644, Owner::ROOT).await.unwrap();
        for (path, wanted) in [
            (vec!["upper", "lower"], vec![upper, lower]),
            (vec!["upper", "lower", "file", "more"], vec![upper, lower]),
            (vec!["upper", "none", "lower"], vec![upper]),
            (vec![], vec![]),
        ] {
            let asked = path.iter().map(|name| Bytes::from(name.to_string())).collect();
            let (start, walked) = fs.walk(ROOT, asked).await.unwrap();
            let inodes: Vec<_> = walked.iter().map(|attributes| attributes.inode).collect();
            assert_eq!((start.inode, inodes), (ROOT, wanted), "{path:?}");
        }
        assert_eq!(errno(fs.walk(InodeId(999), Vec::new()).await), libc::ESTALE);
    });
}

#[test]
fn what_is_free_is_what_the_quota_leaves() {
    in_virtual_time(async {
        for quota_bytes in [0, 100 * 4096] {
            let cluster = Cluster::new(89, quota_bytes);
            let fs = mount(&cluster, "a").await;
            let (_, handle) = create(&fs, "file").await;
            let before = fs.stat_file_system().await.unwrap();
            write(&fs, handle, 0, &"x".repeat(5 * 4096)).await.unwrap();
            fs.fsync(handle).await.unwrap();
            let after = fs.stat_file_system().await.unwrap();
            assert_eq!(after.inodes, 2);
            if quota_bytes > 0 {
                assert!(after.available_bytes + 5 * 4096 <= quota_bytes, "{after:?}");
                assert!(after.total_bytes <= quota_bytes);
            }
            assert!(after.available_bytes <= before.available_bytes);
        }
    });
}
