//! A whole cluster in one thread, from one seed: the real cores of consensus, tables, volume manager, datanode stores and
//! clients, over simulated disks, network and clocks. Everything that can go wrong does, and everything that was promised is
//! checked. See `docs/TESTING.md`.

mod checks;
mod client;
mod clock;
mod cluster;
mod coverage;
mod datanode;
mod disk;
mod faults;
mod machine;
mod machines;
mod metanode;
mod packet;
mod plan;
mod programs;
mod recovering;
mod role;
mod run;
mod sabotage;
mod stranger;
mod trace;
mod truth;
mod volmgr;
mod world;

pub use coverage::Coverage;
pub use run::{Options, Report, run};
pub use sabotage::Sabotage;
