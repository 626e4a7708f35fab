//! The state machine by named cases and by random commands.

use holdfast_proto::cluster::{
    ActivateVolume, AllocateGroups, ConfirmDrops, CreateVolume, DeleteVolume, DiskRecord, GroupRecord, MemberRecord,
    RegisterNode, VolumeKey,
};
use proptest::prelude::*;

use super::*;

const CLUSTER: [u8; 16] = [9; 16];

fn apply(state: &mut ClusterState, op: Op) -> ClusterReply {
    state.apply(ClusterCommand { version: COMMAND_VERSION, time_ns: 77, op: Some(op) }).expect("a sound command")
}

fn kind(reply: &ClusterReply) -> Option<RefusalKind> {
    RefusalKind::from_number(reply.refusal)
}

fn initialise() -> Op {
    Op::Initialise(Initialise { cluster: CLUSTER.to_vec().into(), secret: vec![1; 32].into() })
}

fn node(id: u64, role: Role, address: &str, generation: u64, disks: &[u64]) -> RegisterNode {
    RegisterNode {
        node: id,
        role: (role as i32).unsigned_abs(),
        address: address.to_owned(),
        generation,
        disks: disks
            .iter()
            .map(|disk| DiskRecord { disk: *disk, total_bytes: 10, available_bytes: 5, file_system: 1 })
            .collect(),
        format_nonce: 0,
        living_elsewhere: false,
    }
}

/// Three metanodes (2, 3, 4) and as many datanodes (from 5) with one disk each (from 1).
fn cluster_of(datanodes: u64) -> ClusterState {
    let mut state = ClusterState::default();
    apply(&mut state, initialise());
    for index in 0..3 {
        apply(&mut state, Op::RegisterNode(node(0, Role::Metanode, &format!("h:{index}"), 1, &[])));
    }
    for index in 0..datanodes {
        apply(&mut state, Op::RegisterNode(node(0, Role::Datanode, &format!("d:{index}"), 1, &[0])));
    }
    state
}

fn create(name: &str, k: u32, m: u32) -> CreateVolume {
    CreateVolume {
        request: 1,
        name: name.to_owned(),
        data_shards: k,
        parity_shards: m,
        quota_bytes: 0,
        replicas: vec![2, 3, 4],
        failed_disks: vec![],
    }
}

fn group(id: u64, disks: &[u64]) -> GroupRecord {
    GroupRecord { group: id, members: disks.iter().map(|disk| MemberRecord { disk: *disk, node: disk + 4 }).collect() }
}

#[test]
fn a_node_keeps_its_id_and_gets_it_once_even_when_the_answer_was_lost() {
    let mut state = cluster_of(0);
    let first = RegisterNode { format_nonce: 42, ..node(0, Role::Datanode, "d:1", 1, &[0, 0]) };
    let reply = apply(&mut state, Op::RegisterNode(first.clone()));
    assert_eq!((reply.node, &reply.disks[..]), (5, &[1, 2][..]));
    let again = apply(&mut state, Op::RegisterNode(first));
    assert_eq!((again.node, again.disks), (reply.node, reply.disks));
    let moved = apply(&mut state, Op::RegisterNode(node(5, Role::Datanode, "d:2", 2, &[1, 2, 0])));
    assert_eq!((moved.node, &moved.disks[..]), (5, &[1, 2, 3][..]));
    assert_eq!(state.nodes()[&NodeId(5)].address, "d:2");
    assert_eq!(state.node_of_disk(DiskId(3)), Some(NodeId(5)));
}

#[test]
fn an_old_or_second_living_node_is_refused_and_changes_nothing() {
    let mut state = cluster_of(1);
    apply(&mut state, Op::RegisterNode(node(5, Role::Datanode, "d:0", 7, &[1])));
    let before = state.clone();
    let refused = |state: &mut ClusterState, register: RegisterNode| {
        let reply = apply(state, Op::RegisterNode(register));
        kind(&reply).expect("refused")
    };
    let older = node(5, Role::Datanode, "d:0", 6, &[1]);
    assert_eq!(refused(&mut state, older), RefusalKind::Forbidden);
    let twin = node(5, Role::Datanode, "d:9", 7, &[1]);
    assert_eq!(refused(&mut state, twin), RefusalKind::Busy);
    let newer = node(5, Role::Datanode, "d:9", 8, &[1]);
    let beside = RegisterNode { living_elsewhere: true, ..newer.clone() };
    assert_eq!(refused(&mut state, beside), RefusalKind::Busy);
    assert_eq!(refused(&mut state, node(5, Role::Metanode, "d:0", 8, &[])), RefusalKind::Forbidden);
    assert_eq!(refused(&mut state, node(5, Role::Datanode, "d:0", 8, &[99])), RefusalKind::Forbidden);
    assert_eq!(refused(&mut state, node(77, Role::Datanode, "d:0", 8, &[])), RefusalKind::NotFound);
    assert_eq!(refused(&mut state, node(0, Role::Unknown, "d:0", 8, &[])), RefusalKind::Invalid);
    assert_eq!(state, before);
    assert_eq!(kind(&apply(&mut state, Op::RegisterNode(newer))), None);
}

#[test]
fn a_code_mode_larger_than_the_cluster_is_refused_in_plain_words() {
    let mut state = cluster_of(6);
    let before = state.clone();
    let reply = apply(&mut state, Op::CreateVolume(create("v", 8, 4)));
    assert_eq!(reply.detail, "code 8+4 needs 12 disks, the cluster has 6");
    let failed = CreateVolume { failed_disks: vec![3], ..create("v", 4, 2) };
    assert_eq!(apply(&mut state, Op::CreateVolume(failed)).detail, "code 4+2 needs 6 disks, the cluster has 5");
    assert_eq!(state, before);
    assert_eq!(kind(&apply(&mut state, Op::CreateVolume(create("v", 4, 2)))), None);
}

#[test]
fn a_volume_is_created_once_however_often_it_is_proposed() {
    let mut state = cluster_of(6);
    let reply = apply(&mut state, Op::CreateVolume(create("v", 4, 2)));
    let before = state.clone();
    assert_eq!(apply(&mut state, Op::CreateVolume(create("v", 4, 2))), reply);
    let other = CreateVolume { request: 2, ..create("v", 4, 2) };
    assert_eq!(kind(&apply(&mut state, Op::CreateVolume(other))), Some(RefusalKind::Exists));
    assert_eq!(state, before);
}

#[test]
fn names_replicas_and_codes_that_make_no_sense_are_refused() {
    for name in ["", "-v", ".v", "a b", "a/b", "ä", &"x".repeat(65)] {
        assert!(check_volume_name(name).is_err(), "{name}");
    }
    for name in ["v", "A.b_c-9", &"x".repeat(64)] {
        assert_eq!(check_volume_name(name), Ok(()));
    }
    let mut state = cluster_of(6);
    for replicas in [vec![], vec![2, 3], vec![2, 2, 3], vec![2, 3, 5], vec![2, 3, 99]] {
        let command = CreateVolume { replicas: replicas.clone(), ..create("v", 4, 2) };
        assert!(kind(&apply(&mut state, Op::CreateVolume(command))).is_some(), "{replicas:?}");
    }
    for (k, m) in [(0, 2), (4, 0), (31, 2), (300, 1)] {
        let reply = apply(&mut state, Op::CreateVolume(create("v", k, m)));
        assert_eq!(kind(&reply), Some(RefusalKind::Invalid), "{k}+{m}");
    }
}

#[test]
fn a_deleted_volume_is_listed_until_every_node_confirmed_and_its_name_is_free_at_once() {
    let mut state = cluster_of(2);
    let volume = apply(&mut state, Op::CreateVolume(create("v", 1, 1))).volume;
    apply(&mut state, Op::ActivateVolume(ActivateVolume { volume, incarnation: 1 }));
    let delete = Op::DeleteVolume(DeleteVolume { volume, incarnation: 1 });
    assert_eq!(apply(&mut state, delete.clone()).refusal, 0);
    assert!(state.volume_named("v").is_none());
    let second = apply(&mut state, Op::CreateVolume(create("v", 1, 1))).volume;
    assert_ne!(second, volume);
    let confirm = |state: &mut ClusterState, node, incarnation| {
        let volumes = vec![VolumeKey { volume, incarnation }];
        apply(state, Op::ConfirmDrops(ConfirmDrops { node, volumes }));
    };
    for node in [2, 3, 4, 5] {
        confirm(&mut state, node, 1);
    }
    confirm(&mut state, 6, 2);
    assert_eq!(state.volumes()[&VolumeId(volume)].drop_pending, [NodeId(6)].into());
    confirm(&mut state, 6, 1);
    assert!(!state.volumes().contains_key(&VolumeId(volume)));
    assert_eq!(apply(&mut state, delete).refusal, 0, "a repetition");
    assert_eq!(state.volume_named("v").map(|(id, _)| id.0), Some(second), "meets no later volume of the name");
    for (volume, incarnation) in [(99, 1), (second, 2)] {
        let reply = apply(&mut state, Op::DeleteVolume(DeleteVolume { volume, incarnation }));
        assert_eq!(kind(&reply), Some(RefusalKind::NotFound));
    }
}

#[test]
fn a_repeated_allocation_answers_the_groups_of_the_first() {
    let mut state = cluster_of(3);
    let volume = apply(&mut state, Op::CreateVolume(create("v", 1, 1))).volume;
    let mut allocate = |groups: Vec<GroupRecord>| {
        apply(&mut state, Op::AllocateGroups(AllocateGroups { volume, incarnation: 1, groups }))
    };
    let first = allocate(vec![group(1, &[1, 2]), group(2, &[2, 3])]);
    let again = allocate(vec![group(1, &[3, 1]), group(2, &[3, 1]), group(3, &[3, 1])]);
    assert_eq!(again.groups, [group(1, &[1, 2]), group(2, &[2, 3]), group(3, &[3, 1])]);
    assert_eq!(first.groups[..], again.groups[..2]);
    for bad in [group(5, &[1, 2]), group(4, &[1]), group(4, &[1, 1]), group(4, &[1, 99])] {
        assert!(kind(&allocate(vec![bad.clone()])).is_some(), "{bad:?}");
    }
    assert_eq!(state.groups_per_disk()[&DiskId(3)], 2);
}

#[test]
fn what_no_sound_volume_manager_proposes_stops_the_replica() {
    let mut state = cluster_of(0);
    let before = state.clone();
    let command = |version, op| ClusterCommand { version, time_ns: 0, op };
    assert_eq!(state.apply(command(2, Some(initialise()))), Err(BrokenCommand::UnknownVersion(2)));
    assert_eq!(state.apply(command(1, None)), Err(BrokenCommand::UnknownKind));
    let other = Op::Initialise(Initialise { cluster: vec![8; 16].into(), secret: vec![1; 32].into() });
    assert!(matches!(state.apply(command(1, Some(other))), Err(BrokenCommand::OtherCluster { .. })));
    let again = Op::Initialise(Initialise { cluster: CLUSTER.to_vec().into(), secret: vec![2; 32].into() });
    assert!(state.apply(command(1, Some(again))).is_ok());
    assert_eq!(state, before, "the first secret stays");
}

fn random_op() -> impl Strategy<Value = Op> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("-bad")];
    let register = (0u64..12, 0u32..3, 0u64..4, 0u64..4, proptest::collection::vec(0u64..6, 0..3), any::<bool>());
    prop_oneof![
        3 => register.prop_map(|(id, role, address, generation, disks, living)| {
            let role = [Role::Unknown, Role::Metanode, Role::Datanode][role as usize];
            Op::RegisterNode(RegisterNode {
                living_elsewhere: living,
                ..node(id, role, &format!("h:{address}"), generation, &disks)
            })
        }),
        2 => (name, 0u64..3, proptest::collection::vec(2u64..6, 0..4)).prop_map(|(name, request, replicas)| {
            Op::CreateVolume(CreateVolume { request, replicas, ..create(name, 1, 1) })
        }),
        1 => (2u64..5, 1u64..3).prop_map(|(volume, incarnation)| {
            Op::ActivateVolume(ActivateVolume { volume, incarnation })
        }),
        1 => (1u64..6, 1u64..3).prop_map(|(volume, incarnation)| {
            Op::DeleteVolume(DeleteVolume { volume, incarnation })
        }),
        2 => (2u64..9, 2u64..5).prop_map(|(node, volume)| {
            Op::ConfirmDrops(ConfirmDrops { node, volumes: vec![VolumeKey { volume, incarnation: 1 }] })
        }),
        2 => (2u64..5, 1u64..5, 1u64..4, 1u64..4).prop_map(|(volume, id, a, b)| {
            Op::AllocateGroups(AllocateGroups { volume, incarnation: 1, groups: vec![group(id, &[a, b])] })
        }),
    ]
}

proptest! {
    #[test]
    fn refusals_change_nothing_ids_are_unique_and_snapshots_read_back(ops in proptest::collection::vec(random_op(), 1..60)) {
        let mut state = cluster_of(3);
        let (mut volumes, mut nodes) = (BTreeSet::new(), BTreeSet::new());
        for op in ops {
            let before = state.clone();
            let reply = apply(&mut state, op.clone());
            if reply.refusal != 0 {
                prop_assert_eq!(&state, &before, "{:?} was refused", op);
                continue;
            }
            if matches!(op, Op::CreateVolume(_)) && state.volumes().len() > before.volumes().len() {
                prop_assert!(volumes.insert(reply.volume), "volume id {} twice", reply.volume);
            }
            if matches!(&op, Op::RegisterNode(r) if r.node == 0) && state.nodes().len() > before.nodes().len() {
                prop_assert!(nodes.insert(reply.node), "node id {} twice", reply.node);
            }
        }
        let mut disks = BTreeSet::new();
        for disk in state.nodes().values().flat_map(|n| n.disks.keys()) {
            prop_assert!(disks.insert(*disk), "disk {} of two nodes", disk);
        }
        prop_assert_eq!(ClusterState::from_snapshot(&state.to_snapshot()), Ok(state));
    }
}

#[test]
fn a_snapshot_of_a_newer_version_or_of_rubbish_is_refused() {
    let mut newer = cluster_of(1).to_snapshot();
    newer[1] = 2;
    assert!(ClusterState::from_snapshot(&newer).is_err());
    assert!(ClusterState::from_snapshot(&[0xff; 9]).is_err());
}
