//! Every conversion against what the kernel's headers say.

use super::*;

/// As fuser 0.18's `system_time_from_time` decodes what the kernel sent.
fn as_fuser_decodes(secs: i64, nsecs: u32) -> SystemTime {
    if secs >= 0 {
        UNIX_EPOCH + Duration::new(secs.unsigned_abs(), nsecs)
    } else {
        UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nsecs)
    }
}

/// As fuser 0.18's `time_from_system_time` encodes for the kernel.
fn as_fuser_encodes(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (after.as_secs().cast_signed(), after.subsec_nanos()),
        Err(before) => {
            let (secs, nanos) = (before.duration().as_secs().cast_signed(), before.duration().subsec_nanos());
            if nanos == 0 { (-secs, 0) } else { (-secs - 1, 1_000_000_000 - nanos) }
        }
    }
}

#[test]
fn times_before_1970_are_read_as_the_kernel_means_them() {
    for (secs, nsecs, ns) in [
        (0, 0, 0),
        (1, 5, 1_000_000_005),
        (-1, 0, -1_000_000_000),
        (-1, 999_999_999, -1),
        (-2, 500_000_000, -1_500_000_000),
    ] {
        assert_eq!(from_request_time(as_fuser_decodes(secs, nsecs)), ns, "{secs} {nsecs}");
    }
}

#[test]
fn a_time_that_is_set_is_the_time_that_is_shown() {
    for ns in [0, 1, -1, 1_500_000_000, -1_500_000_000, -1_000_000_000, i64::MAX, i64::MIN, i64::MIN + 1] {
        let (secs, nsecs) = as_fuser_encodes(to_system_time(ns));
        assert_eq!(i128::from(secs) * NS_PER_S + i128::from(nsecs), i128::from(ns));
        assert_eq!(from_request_time(as_fuser_decodes(secs, nsecs)), ns);
    }
}

#[test]
fn a_time_beyond_what_is_kept_is_clamped() {
    assert_eq!(from_request_time(as_fuser_decodes(i64::MAX, 0)), i64::MAX);
    assert_eq!(from_request_time(as_fuser_decodes(-i64::MAX, 0)), i64::MIN);
}

#[test]
fn attributes_show_every_field() {
    let from = Attributes {
        inode: InodeId(7),
        kind: NodeKind::BlockDevice,
        mode: 0o104_755,
        nlink: 2,
        uid: 3,
        gid: 4,
        rdev: 5,
        size_bytes: 6,
        mapped_bytes: 4097,
        atime_ns: -1,
        mtime_ns: 2,
        ctime_ns: 3,
        btime_ns: 4,
    };
    let shown = file_attr(&from);
    assert_eq!((shown.ino, shown.size, shown.blocks, shown.kind), (INodeNo(7), 6, 9, FileType::BlockDevice));
    assert_eq!((shown.perm, shown.nlink, shown.uid, shown.gid, shown.rdev), (0o4755, 2, 3, 4, 5));
    assert_eq!(shown.atime, UNIX_EPOCH - Duration::from_nanos(1));
    assert_eq!(shown.mtime, UNIX_EPOCH + Duration::from_nanos(2));
    assert_eq!(shown.ctime, UNIX_EPOCH + Duration::from_nanos(3));
}

#[test]
fn open_flags_become_what_the_file_allows() {
    let mode = |flags| open_mode(flags, false);
    assert_eq!(mode(libc::O_RDONLY), OpenMode { read: true, ..OpenMode::default() });
    assert_eq!(mode(libc::O_WRONLY), OpenMode { write: true, ..OpenMode::default() });
    assert_eq!(mode(libc::O_RDWR), OpenMode { read: true, write: true, ..OpenMode::default() });
    assert!(mode(libc::O_RDWR | libc::O_SYNC).sync && mode(libc::O_WRONLY | libc::O_DSYNC).sync);
    assert!(open_mode(libc::O_RDWR, true).sync);
}

#[test]
fn the_page_cache_is_used_without_o_direct_and_o_append_and_never_kept() {
    assert_eq!(opened_flags(libc::O_RDWR), FopenFlags::empty());
    assert_eq!(
        opened_flags(libc::O_RDWR | libc::O_DIRECT),
        FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
    );
}

#[test]
fn an_append_is_not_cached_and_its_offset_is_the_clients() {
    let (read, write) = (libc::O_RDONLY | libc::O_APPEND, libc::O_WRONLY | libc::O_APPEND);
    assert!(open_mode(write, false).append);
    assert_eq!(opened_flags(write), FopenFlags::FOPEN_DIRECT_IO);
    assert!(!opened_flags(read).contains(FopenFlags::FOPEN_DIRECT_IO));
    assert_eq!(write_at(7, write, false), WriteAt::End { believed: 7 });
    // fcntl(2) took the flag away, or a mapping's page is written back.
    assert_eq!(write_at(7, libc::O_WRONLY, false), WriteAt::Offset(7));
    assert_eq!(write_at(7, write, true), WriteAt::Offset(7));
}

#[test]
fn only_files_open_for_reading_alone_are_closed_without_a_flush() {
    for flags in [0, libc::O_DIRECT, libc::O_APPEND] {
        assert!(opened_flags(libc::O_RDONLY | flags).contains(FopenFlags::FOPEN_NOFLUSH));
        assert!(!opened_flags(libc::O_RDWR | flags).contains(FopenFlags::FOPEN_NOFLUSH));
        assert!(!opened_flags(libc::O_WRONLY | flags).contains(FopenFlags::FOPEN_NOFLUSH));
    }
}

#[test]
fn rename_flags_that_are_not_known_are_refused() {
    assert_eq!(rename_mode(RenameFlags::empty()), Some(RenameMode::Replace));
    assert_eq!(rename_mode(RenameFlags::RENAME_NOREPLACE), Some(RenameMode::NoReplace));
    assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE), Some(RenameMode::Exchange));
    assert_eq!(rename_mode(RenameFlags::RENAME_WHITEOUT), None);
    assert_eq!(rename_mode(RenameFlags::RENAME_NOREPLACE | RenameFlags::RENAME_EXCHANGE), None);
}

#[test]
fn fallocate_modes_that_a_volume_cannot_have_are_refused() {
    assert_eq!(fallocate_mode(0), Some(FallocateMode::Allocate { keep_size: false }));
    assert_eq!(fallocate_mode(1), Some(FallocateMode::Allocate { keep_size: true }));
    assert_eq!(fallocate_mode(2), None, "a hole that changes the size");
    assert_eq!(fallocate_mode(3), Some(FallocateMode::PunchHole));
    assert_eq!(fallocate_mode(0x10), Some(FallocateMode::ZeroRange { keep_size: false }));
    assert_eq!(fallocate_mode(0x11), Some(FallocateMode::ZeroRange { keep_size: true }));
    assert_eq!(fallocate_mode(libc::FALLOC_FL_COLLAPSE_RANGE), None);
    assert_eq!(fallocate_mode(libc::FALLOC_FL_INSERT_RANGE), None);
}

#[test]
fn nodes_are_told_apart_and_keep_their_device_number() {
    assert_eq!(new_node(libc::S_IFREG | 0o644, 0), Some(NewNode::File));
    assert_eq!(new_node(0o644, 0), Some(NewNode::File));
    assert_eq!(new_node(libc::S_IFIFO, 0), Some(NewNode::Fifo));
    assert_eq!(new_node(libc::S_IFSOCK, 0), Some(NewNode::Socket));
    assert_eq!(new_node(libc::S_IFCHR, 0x0103), Some(NewNode::CharDevice(0x0103)));
    assert_eq!(new_node(libc::S_IFBLK, 0xfff0_0fff), Some(NewNode::BlockDevice(0xfff0_0fff)));
    assert_eq!(new_node(libc::S_IFDIR, 0), None);
    assert_eq!(new_node(libc::S_IFLNK, 0), None);
}

#[test]
fn xattr_names_are_listed_with_their_ends_and_access_lists_are_not_kept() {
    assert_eq!(xattr_list(&[]), b"");
    assert_eq!(xattr_list(&[Bytes::from_static(b"user.a"), Bytes::from_static(b"user.b")]), b"user.a\0user.b\0");
    let refusal = |name: &[u8]| xattr_refusal(name).map(i32::from);
    for kept in [&b"user.a"[..], b"security.capability", b"trusted.x", b"user.."] {
        assert_eq!(refusal(kept), None);
    }
    for access_list in [&b"system.posix_acl_access"[..], b"system.posix_acl_default", b"system."] {
        assert_eq!(refusal(access_list), Some(libc::EOPNOTSUPP));
    }
    for namespace in [&b"user."[..], b"trusted.", b"security."] {
        assert_eq!(refusal(namespace), Some(libc::EINVAL), "a namespace alone is no name");
    }
    assert_eq!(xattr_mode(libc::XATTR_CREATE | libc::XATTR_REPLACE), None);
}

#[test]
fn pieces_are_joined_in_order() {
    assert_eq!(joined(vec![]), Bytes::new());
    assert_eq!(joined(vec![Bytes::from_static(b"ab")]), "ab");
    assert_eq!(joined(vec![Bytes::from_static(b"ab"), Bytes::new(), Bytes::from_static(b"c")]), "abc");
}
