//! Placement of block groups and tables. Pure: the same view gives the same answer.
//!
//! A block group's members are on distinct disks and on as many nodes as there are (D9). Among disks that are equally good for
//! that, those with the fewest block groups for their free space come first, then rotation by group id spreads the ties. The
//! number of copysets is not bounded yet; a bound would narrow the candidates before [`place_group`] chooses.

use std::collections::BTreeMap;

use holdfast_common::{DiskId, GroupId, NodeId};

use crate::state::Member;

/// A disk that a block group may be placed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) disk: DiskId,
    pub(crate) node: NodeId,
    /// Free space that is its own, in bytes: its share where several disks use one file system.
    pub(crate) free_bytes: u64,
    /// Block groups it is a member of already, of all volumes.
    pub(crate) groups_count: u64,
    /// Its node answers heartbeats. A disk of a dead node is taken only when there are not enough others.
    pub(crate) alive: bool,
}

/// The candidates cannot give a group of this width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a block group needs {width} disks, {have} are in service")]
pub(crate) struct TooFew {
    /// Members wanted.
    pub(crate) width: usize,
    /// Distinct disks there are.
    pub(crate) have: usize,
}

/// Chooses the members of one block group.
///
/// # Errors
/// [`TooFew`] distinct disks.
pub(crate) fn place_group(candidates: &[Candidate], width: usize, group: GroupId) -> Result<Vec<Member>, TooFew> {
    let distinct: BTreeMap<DiskId, Candidate> = candidates.iter().map(|c| (c.disk, *c)).collect();
    if distinct.len() < width {
        return Err(TooFew { width, have: distinct.len() });
    }
    let alive_count = distinct.values().filter(|c| c.alive).count();
    let mut left: Vec<Candidate> = distinct.into_values().filter(|c| c.alive || alive_count < width).collect();
    let mut members = Vec::with_capacity(width);
    let mut of_node: BTreeMap<NodeId, usize> = BTreeMap::new();
    for _ in 0..width {
        let count = left.len();
        let best = (0..count).min_by_key(|index| {
            let candidate = &left[*index];
            let used = of_node.get(&candidate.node).copied().unwrap_or(0);
            (!candidate.alive, used, Load::of(candidate), rotated(*index, count, group))
        });
        let Some(best) = best else { return Err(TooFew { width, have: members.len() }) };
        let chosen = left.remove(best);
        *of_node.entry(chosen.node).or_default() += 1;
        members.push(Member { disk: chosen.disk, node: chosen.node });
    }
    let first = usize::try_from(group.0 % width as u64).unwrap_or(0);
    members.rotate_left(first);
    Ok(members)
}

/// Chooses the members of consecutive block groups, each seeing the ones before.
///
/// # Errors
/// [`TooFew`] distinct disks.
pub(crate) fn place_groups(
    mut candidates: Vec<Candidate>,
    width: usize,
    first: GroupId,
    count: u32,
) -> Result<Vec<(GroupId, Vec<Member>)>, TooFew> {
    let mut groups = Vec::new();
    for group in (first.0..).take(count as usize).map(GroupId) {
        let members = place_group(&candidates, width, group)?;
        for candidate in &mut candidates {
            if members.iter().any(|m| m.disk == candidate.disk) {
                candidate.groups_count += 1;
            }
        }
        groups.push((group, members));
    }
    Ok(groups)
}

/// Groups per free space after one more, compared without dividing. A full disk is worse than any other.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Load {
    groups: u64,
    free_bytes: u64,
}

impl Load {
    fn of(candidate: &Candidate) -> Self {
        Self { groups: candidate.groups_count.saturating_add(1), free_bytes: candidate.free_bytes }
    }
}

impl Ord for Load {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let mine = u128::from(self.groups) * u128::from(other.free_bytes);
        let theirs = u128::from(other.groups) * u128::from(self.free_bytes);
        (self.free_bytes == 0).cmp(&(other.free_bytes == 0)).then(mine.cmp(&theirs))
    }
}

impl PartialOrd for Load {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

fn rotated(index: usize, count: usize, group: GroupId) -> usize {
    let shift = usize::try_from(group.0 % count.max(1) as u64).unwrap_or(0);
    (index + count - shift) % count.max(1)
}

/// A metanode that a table may be placed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableCandidate {
    pub(crate) node: NodeId,
    /// Tables it hosts already.
    pub(crate) tables_count: u64,
    /// It answers heartbeats.
    pub(crate) alive: bool,
}

/// Most replicas a table is made with.
const TABLE_REPLICAS_MAX: usize = 3;

/// Chooses a table's metanodes: three if there are as many, else one; living ones first, then those with the fewest
/// tables. Empty if a majority of them would be dead: such a table could not start.
#[must_use]
pub(crate) fn place_table(candidates: &[TableCandidate]) -> Vec<NodeId> {
    let count = if candidates.len() >= TABLE_REPLICAS_MAX { TABLE_REPLICAS_MAX } else { candidates.len().min(1) };
    let mut order = candidates.to_vec();
    order.sort_by_key(|c| (!c.alive, c.tables_count, c.node));
    order.truncate(count);
    let alive = order.iter().filter(|c| c.alive).count();
    if alive * 2 <= order.len() {
        return Vec::new();
    }
    order.into_iter().map(|c| c.node).collect()
}

#[cfg(test)]
mod tests;
