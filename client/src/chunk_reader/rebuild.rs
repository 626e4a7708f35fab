//! Rebuilding parts of shards whose members are dead, slow or damaged, from the same range of any d other shards.
//!
//! All parts of a read are rebuilt at once: each round asks, for every part, as many others as it still lacks, with one request a
//! node. There is a second round only if replacements fail, too.

use super::{ChunkReader, Fetched, ShardPart, geometry_of};
use crate::Error;
use crate::core::members::{Member, Members};
use crate::core::time::Moment;
use bytes::Bytes;
use holdfast_erasure::{Geometry, reconstruct};

/// A part on its way.
struct Rebuild<'a> {
    part: &'a ShardPart,
    geometry: Geometry,
    /// The same range of the shards that have come.
    shards: Vec<Option<Fetched>>,
    /// Members that were not asked yet.
    others: std::vec::IntoIter<(u8, Member)>,
}

impl<'a> Rebuild<'a> {
    fn new(part: &'a ShardPart, members: &Members, now: Moment) -> Result<Self, Error> {
        let geometry = geometry_of(&part.chunk)?;
        let shards = vec![None; geometry.shards_count()];
        let numbers = (0u8..).take(shards.len());
        let mut others: Vec<(u8, Member)> =
            numbers.filter_map(|shard| Some((shard, members.locate(&part.chunk, shard.into())?))).collect();
        // The healthy first; the part's own member again as the last, as it may only have been slow.
        others.sort_by_key(|(shard, member)| (*shard == part.shard, members.is_doubtful(member, now)));
        Ok(Self { part, geometry, shards, others: others.into_iter() })
    }

    fn came_count(&self) -> usize {
        self.shards.iter().flatten().count()
    }

    /// The shards to be asked for next; none if there are enough.
    fn next_round(&mut self) -> Result<Vec<(u8, Member)>, Error> {
        let needed = usize::from(self.geometry.data_shards());
        let missing = needed.saturating_sub(self.came_count());
        let asked: Vec<_> = self.others.by_ref().take(missing).collect();
        if missing > 0 && asked.is_empty() {
            let (chunk, count) = (self.part.chunk.chunk, self.came_count());
            let reason = format!("chunk {chunk}: {count} of the {needed} shards needed can be read");
            return Err(Error::Unreadable(reason));
        }
        Ok(asked)
    }

    fn finish(mut self) -> Result<Fetched, Error> {
        let wanted = usize::from(self.part.shard);
        if let Some(own) = self.shards.get_mut(wanted).and_then(Option::take) {
            return Ok(own);
        }
        let mut shards: Vec<Option<Bytes>> = self.shards.into_iter().map(|shard| shard.map(|s| s.bytes)).collect();
        reconstruct(&self.geometry, &mut shards, &[wanted]).map_err(|e| Error::Unreadable(e.to_string()))?;
        let bytes = shards.get_mut(wanted).and_then(Option::take);
        let bytes = bytes.ok_or_else(|| Error::Unreadable("nothing was reconstructed".to_owned()))?;
        Ok(Fetched { body: bytes.clone(), bytes })
    }
}

impl ChunkReader {
    /// Rebuilds parts, in their order.
    pub(super) async fn rebuild(&self, parts: &[&ShardPart]) -> Result<Vec<Fetched>, Error> {
        let mut rebuilds: Vec<Rebuild<'_>> = self.shell.with(|core, now| {
            parts.iter().map(|part| Rebuild::new(part, &core.members, now)).collect::<Result<_, Error>>()
        })?;
        loop {
            let (mut replacements, mut wanted, mut whose) = (Vec::new(), Vec::new(), Vec::new());
            for (index, rebuild) in rebuilds.iter_mut().enumerate() {
                for (shard, member) in rebuild.next_round()? {
                    wanted.push((replacements.len(), member));
                    replacements.push(ShardPart { shard, ..rebuild.part.clone() });
                    whose.push(index);
                }
            }
            if replacements.is_empty() {
                return rebuilds.into_iter().map(Rebuild::finish).collect();
            }
            let answers = self.ask(&replacements, wanted).await;
            for ((index, replacement), fetched) in whose.into_iter().zip(replacements).zip(answers) {
                rebuilds[index].shards[usize::from(replacement.shard)] = fetched;
            }
        }
    }
}
