//! Setup of the machines, and starts of their processes.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_common::proof::ClusterSecret;
use holdfast_common::{ClusterId, DiskId, NodeId, Random, VolumeId};
use holdfast_metanode::SteppedRecovery;
use holdfast_proto::control::{CreateVolumeRequest, Disk, RegisterRequest, RegisterResponse, Role as NodeRole};
use holdfast_proto::metanode::Neighbours;
use holdfast_storage::SimulatedDisk;
use parking_lot::Mutex;

use crate::client::ClientRole;
use crate::datanode::{self, DatanodeIdentity, DatanodeRole};
use crate::disk::{FIRST_LOG, format_log, log_directories};
use crate::machine::{Machine, Superblock};
use crate::machines::{CLIENTS, CODE, DATANODES, METANODES, STRANGER, VOLMGR, client_node, client_of};
use crate::metanode::{MetanodeIdentity, MetanodeRole};
use crate::packet::{Request, address_of};
use crate::recovering::RecoveringRole;
use crate::role::Role;
use crate::sabotage::Sabotage;
use crate::stranger::StrangerRole;
use crate::truth::Truth;
use crate::truth::volumes::Demands;
use crate::volmgr::{self, VolmgrRole};
use crate::world::World;

const VOLUME: &str = "volume";
const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Size of a disk.
const DISK_BYTES: u64 = 1 << 36;

/// Ids and secret from the registration, kept for all lives.
struct Registered {
    secret: ClusterSecret,
    disks: BTreeMap<NodeId, DiskId>,
    neighbours: BTreeMap<NodeId, Arc<Mutex<Neighbours>>>,
    volume: VolumeId,
    short_segments: bool,
}

/// Makes all machines: the volume manager gives ids to nodes and disks and makes the volume, then everybody starts.
pub(crate) fn build(world: &mut World, sabotage: Sabotage, demands: Demands) {
    let disks: BTreeMap<NodeId, SimulatedDisk> = [VOLMGR]
        .into_iter()
        .chain(METANODES)
        .chain(DATANODES)
        .chain((0..CLIENTS).map(client_node))
        .chain([STRANGER])
        .map(|node| (node, SimulatedDisk::new(world.random.bits())))
        .collect();
    let registered = set_up(&disks, &mut world.random, demands);
    world.start = Box::new(move |machine, random, truth| start(&registered, sabotage, machine, random, truth));
    for (node, disk) in disks {
        world.add(node, disk);
    }
}

fn set_up(disks: &BTreeMap<NodeId, SimulatedDisk>, random: &mut Random, demands: Demands) -> Registered {
    format_log(&disks[&VOLMGR], FIRST_LOG).expect("a new disk");
    let mut manager = volmgr::Setup::new(CLUSTER, &disks[&VOLMGR], random.bits());
    let (mut secret, mut disk_ids) = (None, BTreeMap::new());
    for node in METANODES.into_iter().chain(DATANODES) {
        let is_data = DATANODES.contains(&node);
        let formatted = if is_data { datanode::format(&disks[&node]) } else { format_log(&disks[&node], FIRST_LOG) };
        formatted.expect("a new disk");
        let response = manager.ask(Request::Register(registration(node, is_data)));
        let response: RegisterResponse = response.registered().expect("a registration");
        assert_eq!(response.node, node.0, "nodes are numbered as they register");
        secret = <[u8; 32]>::try_from(&response.secret[..]).ok().map(ClusterSecret);
        disk_ids.extend(response.disks.first().map(|disk| (node, DiskId(*disk))));
    }
    let secret = secret.expect("a secret");
    METANODES.into_iter().for_each(|node| make_log(node, &secret, &disks[&node]));
    let (data_shards, parity_shards) = CODE;
    let volume =
        CreateVolumeRequest { name: VOLUME.to_owned(), data_shards, parity_shards, quota_bytes: demands.quota_bytes };
    let volume = manager.make_volume(Request::CreateVolume(volume));
    Registered {
        secret,
        disks: disk_ids,
        neighbours: METANODES.into_iter().map(|node| (node, Arc::default())).collect(),
        volume,
        short_segments: demands.short_segments,
    }
}

/// Makes a metanode's log as its formatting does: its starts take no other one, and make none.
fn make_log(node: NodeId, secret: &ClusterSecret, disk: &SimulatedDisk) {
    let identity = MetanodeIdentity {
        cluster: CLUSTER,
        secret: secret.clone(),
        node,
        generation: 1,
        log: FIRST_LOG,
        volmgr: VOLMGR,
        volume: VolumeId(0),
        neighbours: Arc::default(),
        short_segments: false,
    };
    let [log, snapshots] = log_directories(disk, FIRST_LOG).expect("a new disk");
    let made = SteppedRecovery::open(identity.options(Sabotage::None, 0, true), log, snapshots);
    made.map(drop).expect("a new disk");
}

fn registration(node: NodeId, is_data: bool) -> RegisterRequest {
    let disk = Disk { healthy: true, total_bytes: DISK_BYTES, available_bytes: DISK_BYTES, ..Disk::default() };
    RegisterRequest {
        cluster: String::new(),
        node: 0,
        role: if is_data { NodeRole::Datanode } else { NodeRole::Metanode }.into(),
        address: address_of(node).to_string(),
        generation: 1,
        disks: if is_data { vec![disk] } else { Vec::new() },
        format_nonce: node.0,
    }
}

fn start(
    registered: &Registered,
    sabotage: Sabotage,
    machine: &mut Machine,
    random: &mut Random,
    truth: &Arc<Mutex<Truth>>,
) -> Result<Box<dyn Role>, String> {
    let (node, seed) = (machine.node, random.bits());
    machine.superblock.generation += 1;
    let Superblock { generation, log, .. } = machine.superblock;
    let times = machine.times();
    let secret = registered.secret.clone();
    if METANODES.contains(&node) {
        let neighbours = Arc::clone(&registered.neighbours[&node]);
        let (volmgr, volume) = (VOLMGR, registered.volume);
        let identity = MetanodeIdentity {
            cluster: CLUSTER,
            secret,
            node,
            generation,
            log,
            volmgr,
            volume,
            neighbours,
            short_segments: registered.short_segments,
        };
        return start_metanode(identity, sabotage, machine, seed);
    }
    let disk = &machine.disk;
    Ok(if node == VOLMGR {
        Box::new(VolmgrRole::start(CLUSTER, sabotage, disk, seed, times)?)
    } else if let Some(disk_id) = registered.disks.get(&node) {
        let identity = DatanodeIdentity { cluster: CLUSTER, secret, node, disk: *disk_id, generation, volmgr: VOLMGR };
        Box::new(DatanodeRole::start(identity, sabotage, disk, times, seed, &mut truth.lock())?)
    } else if node == STRANGER {
        Box::new(StrangerRole::new(secret, registered.disks.clone()))
    } else {
        let client = client_of(node).ok_or("no such machine")?;
        Box::new(ClientRole::start(client, sabotage, (VOLMGR, VOLUME), truth, random.fork(), times))
    })
}

/// Serves, or brings a metanode back whose log is gone.
fn start_metanode(
    identity: MetanodeIdentity,
    sabotage: Sabotage,
    machine: &mut Machine,
    seed: u64,
) -> Result<Box<dyn Role>, String> {
    if machine.superblock.recovering.is_some() {
        return Ok(Box::new(RecoveringRole::start(identity, sabotage, machine, seed)?));
    }
    let started = MetanodeRole::start(identity.clone(), sabotage, &machine.disk, seed);
    if !std::mem::take(&mut machine.is_log_lost) {
        return Ok(Box::new(started?));
    }
    // A replica without its log must not vote (R23).
    assert!(started.is_err(), "{} serves without the log that it had", machine.node);
    Ok(Box::new(RecoveringRole::start(identity, sabotage, machine, seed)?))
}
