//! A volume of more block groups than one answer holds.

use crate::cluster::{Cluster, in_virtual_time};
use crate::scenarios::{READ, create, mount, read, write};
use holdfast_common::{FileOffset, GroupId};
use holdfast_proto::meta::mutation::Op;
use holdfast_proto::meta::{AddGroups, BlockGroup, GroupState, SetGroupState};

/// All of them in one answer would fit no frame.
const GROUPS: u64 = 20_000;

/// The only group that takes new chunks is the last of the last page: only a mount that has fetched all pages can write.
#[test]
fn a_volume_of_twenty_thousand_groups_is_mounted_written_and_read() {
    in_virtual_time(async {
        let cluster = Cluster::new(21, 0);
        let first = cluster.state().table.groups();
        let like_first = |group| BlockGroup { group, ..first[0].clone() };
        let add = |groups: std::ops::RangeInclusive<u64>| {
            Op::AddGroups(AddGroups { groups: groups.map(like_first).collect() })
        };
        cluster.command(add(3..=GROUPS - 1));
        for group in 1..GROUPS {
            let state = GroupState::GroupFull.into();
            cluster.command(Op::SetGroupState(SetGroupState { group, state }));
        }
        cluster.command(add(GROUPS..=GROUPS));
        assert!(cluster.state().table.groups_since((0, GroupId(0))).more);
        let (writer, reader) = (mount(&cluster, "a").await, mount(&cluster, "b").await);
        let (inode, handle) = create(&writer, "file").await;
        write(&writer, handle, 0, "kept").await.unwrap();
        writer.fsync(handle).await.unwrap();
        let other = reader.open(inode, READ).await.unwrap();
        assert_eq!(read(&reader, other).await, b"kept");
        let (_, map) = cluster.state().table.read_map(inode, FileOffset(0), u64::MAX, 0).unwrap();
        assert_eq!(map.chunks[0].group, GROUPS);
    });
}
