//! Choice of the slots of a block group that hold a chunk's shards.

use holdfast_common::ChunkId;

/// Chooses `count` of the usable slots for a chunk: a run of them, cyclic, whose start is a hash of the chunk's id
/// (R13). By a hash, because a counter would march in step with clients that write in rhythm. Shard i goes to the i-th
/// slot of the answer; the choice is recorded with the chunk, so this function may change.
///
/// `None` if fewer than `count` are usable.
#[must_use]
pub fn choose_slots(chunk: ChunkId, usable_slots: &[u8], count: usize) -> Option<Vec<u8>> {
    if count > usable_slots.len() {
        return None;
    }
    let slots_count = u64::try_from(usable_slots.len()).ok()?.max(1);
    let start = usize::try_from(mix(chunk.0) % slots_count).ok()?;
    Some(usable_slots.iter().cycle().skip(start).take(count).copied().collect())
}

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014).
fn mix(id: u64) -> u64 {
    let mut z = id.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_slots_are_usable_and_distinct() {
        let usable = [0, 2, 3, 5, 9];
        for chunk in 0..1000 {
            for count in 0..=5 {
                let chosen = choose_slots(ChunkId(chunk), &usable, count).unwrap();
                let mut distinct = chosen.clone();
                distinct.sort_unstable();
                distinct.dedup();
                assert_eq!((chosen.len(), distinct.len()), (count, count));
                assert!(chosen.iter().all(|slot| usable.contains(slot)));
            }
        }
    }

    #[test]
    fn too_few_slots_give_none() {
        assert_eq!(choose_slots(ChunkId(1), &[0, 1], 3), None);
        assert_eq!(choose_slots(ChunkId(1), &[], 1), None);
        assert_eq!(choose_slots(ChunkId(1), &[], 0), Some(vec![]));
    }

    #[test]
    fn every_stride_of_ids_spreads_evenly() {
        for stride in [1, 2, 3, 6, 12, 256, 1 << 20] {
            let mut firsts = [0_u32; 6];
            for i in 0..6000 {
                let chosen = choose_slots(ChunkId(i * stride), &[0, 1, 2, 3, 4, 5], 3).unwrap();
                firsts[usize::from(chosen[0])] += 1;
            }
            assert!(firsts.iter().all(|n| (850..1150).contains(n)), "stride {stride}: {firsts:?}");
        }
    }

    #[test]
    fn the_hash_is_the_published_one() {
        // First outputs of splitmix64 from seed 0.
        assert_eq!(mix(0), 0xe220_a839_7b1d_cdaf);
        assert_eq!(mix(0x9e37_79b9_7f4a_7c15), 0x6e78_9e6a_a1b9_65f4);
    }
}
