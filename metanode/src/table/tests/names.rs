//! Names, attributes and extended attributes: what random operations reach seldom.

use super::{Fixture, ROOT, create};
use bytes::Bytes;
use holdfast_common::limits::WALK_NAMES_MAX;
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{
    Code, CreateNode, Fallocate, Kind, Link, RaiseFeatureLevel, RemoveXattr, Rename, SetAttr, SetXattr, Unlink,
};

fn unlink(parent: u64, name: &'static [u8], directory: bool) -> Op {
    Op::Unlink(Unlink { parent, name: name.into(), directory })
}

fn rename(parent: u64, name: &'static [u8], new_parent: u64, new_name: &'static [u8]) -> Rename {
    Rename { parent, name: name.into(), new_parent, new_name: new_name.into(), no_replace: false, exchange: false }
}

#[test]
fn rename_over_a_non_empty_directory_leaves_both() {
    let mut fixture = Fixture::new();
    fixture.create(ROOT, b"a", Kind::Directory);
    let target = fixture.create(ROOT, b"b", Kind::Directory);
    fixture.create(target, b"inside", Kind::File);
    fixture.refused(Op::Rename(rename(ROOT, b"a", ROOT, b"b")), Code::NotEmpty);
}

#[test]
fn a_directory_never_moves_into_itself() {
    let mut fixture = Fixture::new();
    let outer = fixture.create(ROOT, b"outer", Kind::Directory);
    let inner = fixture.create(outer, b"inner", Kind::Directory);
    fixture.create(ROOT, b"file", Kind::File);
    fixture.refused(Op::Rename(rename(ROOT, b"outer", inner, b"x")), Code::Invalid);
    fixture.refused(Op::Rename(rename(ROOT, b"outer", outer, b"x")), Code::Invalid);
    let exchange = Rename { exchange: true, ..rename(outer, b"inner", ROOT, b"outer") };
    fixture.refused(Op::Rename(exchange), Code::Invalid);
    fixture.refused(Op::Rename(rename(outer, b"inner", ROOT, b"outer")), Code::NotEmpty);
}

#[test]
fn an_exchange_of_a_file_and_a_directory_moves_the_parents_links() {
    let mut fixture = Fixture::new();
    let left = fixture.create(ROOT, b"left", Kind::Directory);
    let right = fixture.create(ROOT, b"right", Kind::Directory);
    fixture.create(left, b"x", Kind::File);
    let moved = fixture.create(right, b"y", Kind::Directory);
    fixture.ok(Op::Rename(Rename { exchange: true, ..rename(left, b"x", right, b"y") }));
    assert_eq!((fixture.attr(left).nlink, fixture.attr(right).nlink), (3, 2));
    assert_eq!(fixture.table.lookup(moved.into(), b"..").unwrap().inode, left);
}

#[test]
fn a_walk_ends_before_what_is_no_directory() {
    let mut fixture = Fixture::new();
    let outer = fixture.create(ROOT, b"outer", Kind::Directory);
    let inner = fixture.create(outer, b"inner", Kind::Directory);
    fixture.create(inner, b"file", Kind::File);
    let walk = |start: u64, names: &[&'static [u8]]| -> Vec<u64> {
        let names: Vec<_> = names.iter().copied().map(Bytes::from_static).collect();
        fixture.table.walk(start.into(), &names).iter().map(|attr| attr.inode).collect()
    };
    assert_eq!(walk(ROOT, &[b"outer", b"inner"]), [outer, inner]);
    assert_eq!(walk(ROOT, &[b"outer", b"inner", b"file", b"x"]), [outer, inner]);
    assert_eq!(walk(ROOT, &[b"outer", b"missing", b"inner"]), [outer]);
    assert_eq!(walk(outer, &[b"inner", b"..", b"inner"]), [inner, outer, inner]);
    assert_eq!(walk(ROOT, &[]), []);
    assert_eq!(walk(999, &[b"outer"]), [], "where it starts is gone");
    assert_eq!(walk(ROOT, &[b".".as_slice(); WALK_NAMES_MAX + 1]).len(), WALK_NAMES_MAX);
}

#[test]
fn renaming_one_link_over_another_of_the_same_file_keeps_both() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"a", Kind::File);
    fixture.ok(Op::Link(Link { inode, parent: ROOT, name: b"b"[..].into() }));
    fixture.ok(Op::Rename(rename(ROOT, b"a", ROOT, b"b")));
    assert_eq!(fixture.attr(inode).nlink, 2);
    let no_replace = Rename { no_replace: true, ..rename(ROOT, b"a", ROOT, b"b") };
    fixture.refused(Op::Rename(no_replace), Code::Exists);
}

#[test]
fn an_unlinked_file_stays_until_it_is_reaped_and_cannot_be_linked_again() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"a", Kind::File);
    let response = fixture.ok(unlink(ROOT, b"a", false));
    assert_eq!(response.other_attr.map(|attr| (attr.inode, attr.nlink)), Some((inode, 0)));
    assert_eq!(fixture.table.orphans(0.into(), 9), [inode.into()]);
    fixture.refused(Op::Link(Link { inode, parent: ROOT, name: b"b"[..].into() }), Code::NotFound);
    fixture.lead(Op::ReapOrphans(holdfast_proto::meta::ReapOrphans { inodes: vec![inode], max_extents: 1 }));
    assert_eq!(fixture.table.get_attr(inode.into()), Err(Code::Stale));
}

#[test]
fn nothing_is_created_in_a_removed_directory() {
    let mut fixture = Fixture::new();
    let directory = fixture.create(ROOT, b"d", Kind::Directory);
    fixture.ok(unlink(ROOT, b"d", true));
    fixture.refused(create(directory, b"x", Kind::File), Code::NotFound);
    fixture.create(ROOT, b"f", Kind::File);
    fixture.refused(Op::Rename(rename(ROOT, b"f", directory, b"x")), Code::NotFound);
    assert!(fixture.table.read_directory(directory.into(), 0, 10, true).unwrap().end);
}

#[test]
fn a_cookie_is_never_given_twice_and_survives_a_replacing_rename() {
    let mut fixture = Fixture::new();
    for name in [b"a", b"b", b"c"] {
        fixture.create(ROOT, name, Kind::File);
    }
    fixture.ok(unlink(ROOT, b"c", false));
    fixture.create(ROOT, b"c", Kind::File);
    fixture.ok(Op::Rename(rename(ROOT, b"a", ROOT, b"b")));
    let page = fixture.table.read_directory(ROOT.into(), 0, 10, false).unwrap();
    let cookies: Vec<_> = page.entries.iter().map(|entry| (entry.name.to_vec(), entry.cookie)).collect();
    assert_eq!(cookies, [(b"b".to_vec(), 17), (b"c".to_vec(), 19)]);
}

#[test]
fn a_setgid_directory_passes_its_group_on() {
    let mut fixture = Fixture::new();
    let parent = fixture.create(ROOT, b"d", Kind::Directory);
    fixture.ok(Op::SetAttr(SetAttr { inode: parent, mode: Some(0o2775), gid: Some(42), ..SetAttr::default() }));
    let file = fixture.create(parent, b"f", Kind::File);
    let directory = fixture.create(parent, b"d", Kind::Directory);
    assert_eq!((fixture.attr(file).gid, fixture.attr(file).mode), (42, 0o644));
    assert_eq!((fixture.attr(directory).gid, fixture.attr(directory).mode), (42, 0o2644));
}

#[test]
fn symlink_targets_and_file_sizes_have_the_limits_of_linux() {
    let mut fixture = Fixture::new();
    let symlink = |length: usize| {
        Op::Create(CreateNode {
            parent: ROOT,
            name: b"s"[..].into(),
            kind: Kind::Symlink.into(),
            target: vec![b't'; length].into(),
            exclusive: true,
            ..CreateNode::default()
        })
    };
    fixture.refused(symlink(4096), Code::NameTooLong);
    fixture.refused(symlink(0), Code::NotFound);
    fixture.ok(symlink(4095));
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let resize = |size| Op::SetAttr(SetAttr { inode, size_bytes: Some(size), ..SetAttr::default() });
    fixture.refused(resize(1 << 63), Code::FileTooLarge);
    fixture.ok(resize(i64::MAX as u64 - 4095));
    let allocate =
        |offset, length_bytes| Fallocate { inode, offset, length_bytes, keep_size: true, ..Fallocate::default() };
    fixture.refused(Op::Fallocate(allocate(u64::MAX, 2)), Code::FileTooLarge);
    fixture.refused(Op::Fallocate(Fallocate { mode: 9, ..allocate(0, 1) }), Code::NotSupported);
}

#[test]
fn setting_no_attribute_answers_and_changes_nothing() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let before = fixture.attr(inode);
    let response = fixture.ok(Op::SetAttr(SetAttr { inode, ..SetAttr::default() }));
    assert_eq!(response.attr, Some(before));
    assert_eq!(fixture.attr(inode), before);
}

#[test]
fn extended_attributes_have_the_limits_of_linux() {
    let mut fixture = Fixture::new();
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let set = |name: Vec<u8>, value: usize| {
        let value = vec![1; value].into();
        Op::SetXattr(SetXattr { inode, name: name.into(), value, create: false, replace: false })
    };
    fixture.refused(set(b"user.big".to_vec(), 65_537), Code::TooBig);
    fixture.refused(set(vec![b'n'; 256], 1), Code::NameTooLong);
    fixture.refused(set(vec![], 1), Code::Invalid);
    for i in 0..16u8 {
        fixture.ok(set(vec![b'v', i + 1], 65_536));
    }
    fixture.refused(set(b"one more".to_vec(), 1), Code::NoSpace);
    fixture.ok(set(vec![b'v', 3], 10));
    fixture.ok(set(b"one more".to_vec(), 1));
}

#[test]
fn an_extended_attribute_needs_a_name_behind_its_namespace() {
    for (level, code) in [(0, Code::Ok), (1, Code::Invalid)] {
        let mut fixture = Fixture::at_level(level, 0);
        let inode = fixture.create(ROOT, b"f", Kind::File);
        let set = |name: &'static [u8]| {
            let (name, value) = (name.into(), b"1"[..].into());
            Op::SetXattr(SetXattr { inode, name, value, ..SetXattr::default() })
        };
        for name in [&b"user."[..], b"trusted.", b"security.", b"system.", b"user.a\0b"] {
            assert_eq!(fixture.run(set(name)).code(), code, "{name:?}");
        }
        for name in [&b"user.."[..], b"user.a", b"user"] {
            fixture.ok(set(name));
        }
    }
}

/// As a table has it that was at level 0 before.
#[test]
fn an_extended_attribute_of_a_name_that_is_refused_now_can_be_removed() {
    let mut fixture = Fixture::at_level(0, 0);
    let inode = fixture.create(ROOT, b"f", Kind::File);
    let (name, value) = (b"user."[..].into(), b"1"[..].into());
    fixture.ok(Op::SetXattr(SetXattr { inode, name, value, ..SetXattr::default() }));
    fixture.lead(Op::RaiseFeatureLevel(RaiseFeatureLevel { level: 1 }));
    fixture.ok(Op::RemoveXattr(RemoveXattr { inode, name: b"user."[..].into() }));
}
