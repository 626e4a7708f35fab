//! Facts of volumes that a disk must remember beyond their shards: floors (R4) and drops. A small file, replaced as a
//! whole.

use std::collections::BTreeMap;
use std::io;

use holdfast_common::checksum::crc32c;
use holdfast_common::{ChunkId, Incarnation, VolumeId};

use super::fields::{FieldReader, FieldWriter};
use super::types::VolumeKey;
use holdfast_storage::Directory;

pub(crate) const VOLUMES_FILE: &str = "volumes";
pub(crate) const VOLUMES_MAGIC: [u8; 4] = *b"HFvo";
pub(crate) const VOLUMES_VERSION: u16 = 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VolumeState {
    /// Puts below are refused.
    pub(crate) floor: ChunkId,
    /// Its life is over: everything of it is garbage.
    pub(crate) dropped: bool,
}

/// Floors and drops of a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Volumes(pub(crate) BTreeMap<VolumeKey, VolumeState>);

/// Reason why the file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum VolumesError {
    /// The system says so.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Its checksum or content is wrong.
    #[error("it is damaged")]
    Damaged,
    /// Of another version.
    #[error("it was made by a newer version of Holdfast")]
    Unsupported,
}

impl Volumes {
    #[must_use]
    pub(crate) fn get(&self, volume: &VolumeKey) -> VolumeState {
        self.0.get(volume).copied().unwrap_or_default()
    }

    /// Raises a floor or drops a volume; true if that says more than was known.
    pub(crate) fn learn(&mut self, key: VolumeKey, state: VolumeState) -> bool {
        let known = self.get(&key);
        let more = !known.dropped && (state.dropped || state.floor > known.floor);
        if more {
            let state = if state.dropped { VolumeState { dropped: true, ..VolumeState::default() } } else { state };
            self.0.insert(key, state);
        }
        more
    }

    #[must_use]
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.0.len() * 25);
        out.extend_from_slice(&VOLUMES_MAGIC);
        out.put_u16(VOLUMES_VERSION);
        out.put_u16(0);
        out.put_u64(self.0.len() as u64);
        for (key, state) in &self.0 {
            out.put_u64(key.volume.0);
            out.put_u64(key.incarnation.0);
            out.put_u64(state.floor.0);
            out.push(u8::from(state.dropped));
        }
        let crc = crc32c(&out);
        out.put_u32(crc);
        out
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// [`VolumesError::Damaged`] or [`VolumesError::Unsupported`].
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, VolumesError> {
        let damaged = || VolumesError::Damaged;
        let body_bytes = bytes.len().checked_sub(4).ok_or_else(damaged)?;
        let (body, crc) = bytes.split_at(body_bytes);
        let mut fields = FieldReader::new(body);
        if crc32c(body).to_le_bytes() != crc || fields.take(4) != Some(&VOLUMES_MAGIC) {
            return Err(VolumesError::Damaged);
        }
        if fields.u16() != Some(VOLUMES_VERSION) || fields.u16() != Some(0) {
            return Err(VolumesError::Unsupported);
        }
        Self::decode_entries(&mut fields).filter(|_| fields.is_empty()).ok_or_else(damaged)
    }

    fn decode_entries(fields: &mut FieldReader<'_>) -> Option<Self> {
        let mut volumes = Self::default();
        for _ in 0..fields.u64()? {
            let key = VolumeKey { volume: VolumeId(fields.u64()?), incarnation: Incarnation(fields.u64()?) };
            let state = VolumeState { floor: ChunkId(fields.u64()?), dropped: fields.u8()? != 0 };
            volumes.0.insert(key, state);
        }
        Some(volumes)
    }

    /// Reads the disk's file.
    ///
    /// # Errors
    /// See [`VolumesError`]; a missing file is an I/O error, because a formatted disk has one.
    pub(crate) fn load(directory: &dyn Directory) -> Result<Self, VolumesError> {
        Self::decode(&directory.read(VOLUMES_FILE)?)
    }

    /// Replaces the disk's file; durable when it returns.
    ///
    /// # Errors
    /// Any I/O error; the old content then stands.
    pub(crate) fn store(&self, directory: &dyn Directory) -> io::Result<()> {
        directory.replace(VOLUMES_FILE, &self.encode())
    }
}
