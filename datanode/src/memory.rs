//! Memory of a datanode for disks that are away: floors that were set and volumes that were dropped meanwhile. A disk
//! that returns learns it before it serves; otherwise it would take puts below a floor, and keep a deleted volume for
//! ever.

use std::io;
use std::sync::Arc;

use holdfast_storage::Directory;
use parking_lot::Mutex;

use crate::store::types::{Request, VolumeKey};
use crate::store::volumes::{VolumeState, Volumes, VolumesError};

/// The node's memory: a file like the one of each disk, in the node's directory.
pub(crate) struct Memory {
    directory: Arc<dyn Directory>,
    volumes: Mutex<Volumes>,
}

impl Memory {
    /// Reads the memory in the directory of a node.
    ///
    /// # Errors
    /// [`VolumesError`]: it cannot be read, or is of a newer version.
    pub(crate) fn load(directory: Arc<dyn Directory>) -> Result<Self, VolumesError> {
        let volumes = match Volumes::load(&*directory) {
            Ok(volumes) => volumes,
            Err(VolumesError::Io(error)) if error.kind() == io::ErrorKind::NotFound => Volumes::default(),
            Err(other) => return Err(other),
        };
        Ok(Self { directory, volumes: Mutex::new(volumes) })
    }

    pub(crate) fn directory(&self) -> Arc<dyn Directory> {
        self.directory.clone()
    }

    pub(crate) fn all(&self) -> Vec<(VolumeKey, VolumeState)> {
        self.volumes.lock().0.iter().map(|(key, state)| (*key, *state)).collect()
    }

    /// Remembers a floor or a drop, durably. Blocks.
    ///
    /// # Errors
    /// Any I/O error; nothing is remembered then.
    pub(crate) fn remember(&self, request: &Request) -> io::Result<()> {
        let (key, state) = match request {
            Request::SetFloor { volume, floor } => (*volume, VolumeState { floor: *floor, dropped: false }),
            Request::DropVolume { volume } => (*volume, VolumeState { dropped: true, ..VolumeState::default() }),
            Request::Put(_) | Request::Delete { .. } => return Ok(()),
        };
        let mut volumes = self.volumes.lock();
        let mut next = volumes.clone();
        if next.learn(key, state) {
            next.store(&*self.directory)?;
            *volumes = next;
        }
        Ok(())
    }
}
