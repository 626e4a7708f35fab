//! Proofs that a delete, floor or drop was asked for by a table or the volume manager (R30): a BLAKE3 MAC keyed with
//! the cluster's secret over the request's canonical bytes. Every node learns the secret when it registers.

use crate::{ChunkId, Incarnation, NodeId, Nonce, VolumeId};

/// The secret of a cluster, shared by its nodes, never given to clients.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret(pub [u8; 32]);

impl std::fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ClusterSecret(..)")
    }
}

/// One attempt at one shard of a chunk (R1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ShardName {
    /// The chunk.
    pub chunk: ChunkId,
    /// Number of the shard in the chunk.
    pub shard: u8,
    /// The attempt.
    pub nonce: Nonce,
}

/// Request that a proof allows.
#[derive(Clone, Copy, Debug)]
pub enum Claim<'a> {
    /// Delete these chunks' shards.
    DeleteChunks(&'a [ChunkId]),
    /// Delete these chunks' shards, and these shards.
    DeleteShards(&'a [ChunkId], &'a [ShardName]),
    /// Refuse puts below this id.
    SetFloor(ChunkId),
    /// Delete the whole volume incarnation.
    DropVolume,
    /// Let this start of a metanode back into the volume's table, and give it a snapshot of it.
    Admit(NodeId, u64),
}

impl ClusterSecret {
    /// The MAC of a claim on a volume.
    #[must_use]
    pub fn prove(&self, volume: VolumeId, incarnation: Incarnation, claim: Claim<'_>) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(b"holdfast proof 1");
        hasher.update(&volume.0.to_le_bytes());
        hasher.update(&incarnation.0.to_le_bytes());
        match claim {
            Claim::DeleteChunks(chunks) => {
                hasher.update(b"delete");
                for chunk in chunks {
                    hasher.update(&chunk.0.to_le_bytes());
                }
            }
            Claim::DeleteShards(chunks, shards) => {
                // The counts keep a chunk from passing for a part of a name. No other claim begins so.
                hasher.update(b"names");
                hasher.update(&(chunks.len() as u64).to_le_bytes());
                for chunk in chunks {
                    hasher.update(&chunk.0.to_le_bytes());
                }
                for ShardName { chunk, shard, nonce } in shards {
                    hasher.update(&chunk.0.to_le_bytes());
                    hasher.update(&[*shard]);
                    hasher.update(&nonce.0.to_le_bytes());
                }
            }
            Claim::SetFloor(floor) => {
                hasher.update(b"floor");
                hasher.update(&floor.0.to_le_bytes());
            }
            Claim::DropVolume => {
                hasher.update(b"drop");
            }
            Claim::Admit(node, generation) => {
                hasher.update(b"admit");
                hasher.update(&node.0.to_le_bytes());
                hasher.update(&generation.to_le_bytes());
            }
        }
        *hasher.finalize().as_bytes()
    }

    /// Whether `mac` proves the claim; compares in constant time.
    #[must_use]
    pub fn verify(&self, volume: VolumeId, incarnation: Incarnation, claim: Claim<'_>, mac: &[u8]) -> bool {
        <[u8; 32]>::try_from(mac)
            .is_ok_and(|mac| blake3::Hash::from(self.prove(volume, incarnation, claim)) == blake3::Hash::from(mac))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proof_holds_for_its_claim_only() {
        let secret = ClusterSecret([3; 32]);
        let (v, i) = (VolumeId(1), Incarnation(1));
        let mac = secret.prove(v, i, Claim::DeleteChunks(&[ChunkId(5), ChunkId(6)]));
        assert!(secret.verify(v, i, Claim::DeleteChunks(&[ChunkId(5), ChunkId(6)]), &mac));
        assert!(!secret.verify(v, i, Claim::DeleteChunks(&[ChunkId(5)]), &mac));
        assert!(!secret.verify(VolumeId(2), i, Claim::DeleteChunks(&[ChunkId(5), ChunkId(6)]), &mac));
        assert!(!secret.verify(v, Incarnation(2), Claim::DeleteChunks(&[ChunkId(5), ChunkId(6)]), &mac));
        assert!(!secret.verify(v, i, Claim::DropVolume, &mac));
        assert!(!secret.verify(v, i, Claim::DeleteChunks(&[ChunkId(5), ChunkId(6)]), &mac[..31]));
        assert!(!secret.verify(v, i, Claim::DeleteShards(&[ChunkId(5), ChunkId(6)], &[]), &mac));
        assert!(!ClusterSecret([4; 32]).verify(v, i, Claim::DeleteChunks(&[ChunkId(5), ChunkId(6)]), &mac));
    }

    #[test]
    fn a_proof_covers_every_part_of_every_name() {
        let secret = ClusterSecret([3; 32]);
        let (v, i) = (VolumeId(1), Incarnation(1));
        let (chunks, name) = ([ChunkId(5)], ShardName { chunk: ChunkId(6), shard: 1, nonce: Nonce(7) });
        let mac = secret.prove(v, i, Claim::DeleteShards(&chunks, &[name]));
        assert!(secret.verify(v, i, Claim::DeleteShards(&chunks, &[name]), &mac));
        let others = [
            ShardName { chunk: ChunkId(7), ..name },
            ShardName { shard: 2, ..name },
            ShardName { nonce: Nonce(8), ..name },
        ];
        assert!(others.iter().all(|other| !secret.verify(v, i, Claim::DeleteShards(&chunks, &[*other]), &mac)));
        assert!(!secret.verify(v, i, Claim::DeleteShards(&[], &[name]), &mac));
        assert!(!secret.verify(v, i, Claim::DeleteShards(&chunks, &[name, name]), &mac));
        assert!(!secret.verify(v, i, Claim::DeleteChunks(&chunks), &mac));
    }
}
