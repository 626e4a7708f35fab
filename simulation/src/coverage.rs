//! Counts of a run's events: a fault that never happens in many runs is not tested.

use holdfast_storage::simulated::Counts;

macro_rules! coverage {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts of a run, or of many.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Coverage {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Coverage {
            /// Adds another run's.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            /// All counts by name.
            #[must_use]
            pub fn counts(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

coverage! {
    /// Events of the world.
    events,
    /// Operations of programs that were compared.
    operations,
    /// Starts of processes.
    starts,
    /// Deaths of processes.
    kills,
    /// Deaths in the middle of an operation of the disk.
    deaths_in_operations,
    /// Deaths after some of the messages of a turn were sent.
    deaths_between_effects,
    /// Pauses of processes.
    pauses,
    /// Wall clocks set.
    clock_jumps,
    /// Links cut.
    partitions,
    /// Links cut in one direction.
    one_way_partitions,
    /// Packets lost.
    lost_packets,
    /// Packets that came seconds later.
    late_packets,
    /// Answers with a part of a map that came late.
    late_maps,
    /// Packets doubled.
    doubled_packets,
    /// Calls whose connection was closed.
    closed_calls,
    /// Entries of the table's log.
    entries,
    /// Mutations that came twice.
    repeated_mutations,
    /// Changes of the table's leader.
    leader_changes,
    /// Leaders that were cut off from the other metanodes while a client reached them.
    deposed_leaders,
    /// Logs of metanodes lost as a whole.
    lost_logs,
    /// Metanodes that lost their log and came back.
    recovered_metanodes,
    /// Older copies of metanodes started in their place.
    older_copies,
    /// Starts of metanodes that the volume manager refused for good.
    refused_starts,
    /// Times that a metanode's answers to creates were late, while everything else went on.
    held_creates,
    /// Snapshots installed by replicas.
    snapshots_installed,
    /// Sessions expired.
    session_expiries,
    /// Lost writes that a program was told of.
    told_losses,
    /// Files that a client wrote anew after the session of their writer was lost.
    taken_over,
    /// Chunks whose stripe is narrower than the code's.
    narrowed_stripes,
    /// Orphans reaped.
    reaped_orphans,
    /// Files that a program had open when they had no name any more.
    nameless_files,
    /// Files truncated by another client than the one that writes.
    truncated_by_another,
    /// Writes refused for want of quota.
    over_quota,
    /// Volumes made beside the one that is worked on.
    volumes_made,
    /// Volumes deleted.
    volumes_deleted,
    /// Floors raised.
    floors,
    /// Chunks freed and forgotten.
    forgotten_chunks,
    /// Chunks of commits that had to be written anew.
    rewritten_chunks,
    /// Commits that named a freed chunk again, and were refused.
    burnt_commits,
    /// Times that chunks were forgotten although a silent member had not confirmed.
    debts,
    /// Debts of members settled, once their disk was compared.
    settled_debts,
    /// Shards deleted that no commit named.
    collected_orphans,
    /// Ranges of shards that datanodes served or refused, and that were compared.
    compared_shards,
    /// Puts that datanodes had to refuse.
    refused_puts,
    /// Files that lost the end of what was written.
    torn_files,
    /// Sectors that were lost with the power.
    lost_sectors,
    /// Names that were lost with the power.
    lost_names,
    /// Syncs that failed.
    sync_errors,
    /// Syncs that were to fail shortly before a loss of power.
    failing_syncs,
    /// Reads that failed.
    read_errors,
    /// Disks that failed for good.
    lost_disks,
    /// Bits that rotted.
    rotten_bits,
    /// Sectors that a sync left out although it said Ok.
    phantom_writes,
    /// Sectors that a sync wrote to the place of others.
    misdirected_writes,
    /// Writes that failed.
    write_errors,
    /// Times that others took the space that a disk had left.
    full_disks,
    /// Writes and allocations without space.
    no_space,
    /// Requests of clients that a table refused for want of space on its metanode.
    refused_growth,
    /// Lengths of files that were lost with the power.
    lost_lengths,
    /// Operations of disks that took long.
    slow_operations,
    /// Operations without a descriptor.
    no_descriptor,
}

impl Coverage {
    /// Adds what happened on a disk.
    pub(crate) fn add_disk(&mut self, counts: &Counts) {
        self.torn_files += counts.torn_files;
        self.lost_sectors += counts.lost_sectors;
        self.lost_names += counts.lost_names;
        self.sync_errors += counts.sync_errors;
        self.read_errors += counts.read_errors;
        self.rotten_bits += counts.rotten_bits;
        self.phantom_writes += counts.phantom_writes;
        self.misdirected_writes += counts.misdirected_writes;
        self.write_errors += counts.write_errors;
        self.no_space += counts.no_space;
        self.lost_lengths += counts.lost_lengths;
        self.slow_operations += counts.slow_operations;
        self.no_descriptor += counts.no_descriptor;
    }
}
