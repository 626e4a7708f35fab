//! FUSE adapter over the Holdfast client, and mounting.
//!
//! `fuse` turns kernel requests into calls of [`holdfast_client::FileSystem`]; `mount` puts it into the file system
//! tree and takes it out again. Nothing else in Holdfast names FUSE.

mod fuse;
mod mount;

pub use fuse::Adapter;
pub use mount::{
    Holder, Holding, Mount, MountError, MountOptions, MountPoint, OptionError, SessionEnd, UnmountError, UnmountHow,
};
