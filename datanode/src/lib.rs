//! A datanode: shards on disks, served over the framed transport.
//!
//! `store` is one disk's shard store; [`format`], [`start`] and [`Datanode`] are the node's life around it.
//! [`SteppedDatanode`] is the same node without its threads, for simulations.

mod clock;
mod disk;
mod disks;
mod error;
mod heartbeat;
mod memory;
mod node;
mod process;
mod protocol;
mod service;
mod stepped;
mod store;
mod superblock;

pub use disk::{READ_QUEUE_MAX, WRITE_QUEUE_BYTES_MAX, WRITE_QUEUE_MAX};
pub use error::StartError;
pub use node::{Datanode, DatanodeConfig, format, start, start_in, start_with};
pub use process::Process;
pub use protocol::{LIST_SHARDS_MAX, READ_RANGES_MAX};
pub use stepped::{DataRequest, DataResponse, DatanodeOptions, HeldShard, SteppedDatanode};
pub use store::types::{ChunkKey, ShardKey, VolumeKey};
pub use store::{Sabotage, StoreOptions};
pub use superblock::{DiskSuperblock, NODE_KIND};

#[cfg(test)]
mod node_tests;
#[cfg(test)]
mod stepped_tests;
