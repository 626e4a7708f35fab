//! Common parts of every serving role: a superblock that says whose a directory is, an address to listen on, and
//! the volume manager to register with.

mod complaint;
mod home;
mod identity;
mod listen;
mod stopped;
pub mod superblock;
mod volmgr;

pub use complaint::Complaint;
pub use home::{HomeLost, check_home, look_at_home};
pub use identity::NodeSuperblock;
pub use listen::{ListenError, Reserved};
pub use stopped::reason_of_stop;
pub use volmgr::{VolumeManager, is_final};
