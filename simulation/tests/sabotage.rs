//! The simulation proves that it can find things: each of these rules, broken, is found by the seed that found it first. The
//! table in `docs/TESTING.md` says the same.

use std::collections::BTreeSet;

use holdfast_simulation::{Options, Sabotage, run};

/// Names of rules, the seed that finds each, and a part of what it says.
const FOUND: &[(&str, u64, &str)] = &[
    ("consensus-AdmittedAtOnce", 335, "is out of range"),
    ("consensus-AnswersBeforeSync", 57, "out of range"),
    ("consensus-AppliedAgain", 6, "contents after entry"),
    ("consensus-CarryCountedInParts", 93, "the log contradicts itself"),
    ("consensus-ChecksumsIgnored", 3, "is damaged"),
    ("consensus-FailedSyncRetried", 29, "acknowledged bytes"),
    ("consensus-FreeingRefused", 4, "what frees is refused"),
    ("consensus-InstalledEntriesKept", 31, "contradicts its snapshot"),
    ("consensus-LeaseOutlivesPatience", 12, "never had the names"),
    ("consensus-MissingLogMade", 1, "serves without the log that it had"),
    ("consensus-NeededSegmentsRecycled", 3, "the log contradicts itself"),
    ("consensus-ReadsWithoutQuorum", 2, "never had the names"),
    ("consensus-RestartedVotesAtOnce", 2, "never had the names"),
    ("consensus-SnapshotUnsynced", 1, "the snapshot is damaged"),
    ("consensus-TailNotRewritten", 3, "the log contradicts itself"),
    ("consensus-VotesUnwritten", 34, "two leaders in term"),
    ("metanode-ChunkIdsGivenTwice", 0, "contents after entry"),
    ("metanode-CommitsBelowFloorTaken", 2, "contents after entry"),
    ("metanode-EndingSessionsRenewed", 138, "was expired"),
    ("metanode-FloorAtPresentId", 0, "after chunk 1 was given out"),
    ("metanode-FreedChunksDeletedAtOnce", 0, "after it was freed"),
    ("metanode-FreedChunksOrphaned", 0, "after it was freed"),
    ("metanode-FreedChunksTakenAgain", 3, "contents after entry"),
    ("metanode-LookedUpBeforePage", 0, "which is live"),
    ("metanode-OldStartsHeard", 3, "two leaders in term"),
    ("metanode-OpenFilesReaped", 0, "was reaped while client"),
    ("metanode-OwedNotWritten", 0, "contents after entry"),
    ("metanode-QuotaIgnored", 1, "contents after entry"),
    ("metanode-ReadsWithoutBarrier", 30, "never had the names"),
    ("metanode-ReapedBeforeAttached", 2, "was reaped while client"),
    ("metanode-ReapedUnderCreates", 34, "being answered"),
    ("metanode-RefusedServesOn", 7, "was refused for good, and goes on"),
    ("metanode-RepliesForgotten", 0, "contents after entry"),
    ("metanode-SessionsExpiredEarly", 0, "was expired"),
    ("metanode-SharedChunksFreed", 0, "contents after entry"),
    ("metanode-SilenceConfirms", 0, "is forgotten, and disk"),
    ("metanode-SweptClearsAll", 16, "contents after entry"),
    ("metanode-TimeGoesBack", 4, "contents after entry"),
    ("metanode-TruncatedCommitsTaken", 0, "contents after entry"),
    ("metanode-UnconfirmedChunksForgotten", 0, "is forgotten, and disk"),
    ("datanode-AcceptTorn", 9, "is damaged on a disk that damages nothing"),
    ("datanode-AnswerDeleteBeforeSync", 10, "was deleted or never put"),
    ("datanode-AnswerPutBeforeSync", 0, "is damaged on a disk that damages nothing"),
    ("datanode-DeleteAnyNonce", 0, "was durable and is not found"),
    ("datanode-ForgetFailure", 2, "its disk failed, and serves again"),
    ("datanode-IgnoreFloor", 0, "and it is below the floor"),
    ("datanode-IgnoreReservations", 7, "with what others have reserved"),
    ("datanode-NoRoomFails", 4, "takes its disk for failed"),
    ("datanode-OverwriteOtherShard", 0, "is taken, and attempt"),
    ("datanode-ProofsIgnored", 0, "is done without a proof"),
    ("datanode-PutAfterDrop", 0, "and its volume was dropped"),
    ("datanode-RecycleBeforeCheckpoint", 37, "was deleted or never put"),
    ("datanode-RetryFailedSync", 3, "is damaged on a disk that damages nothing"),
    ("datanode-ServeAnyNonce", 0, "and was never put here or deleted"),
    ("datanode-ServeUnverified", 55, "with other bytes than were put"),
    ("volmgr-ActivateUnready", 2, "its table was never ready"),
    ("volmgr-AnswerBeforeTable", 2, "its table was never ready"),
    ("volmgr-ConfirmUnreported", 2, "replicas of deleted volumes"),
    ("volmgr-HearOlderGeneration", 5, "is heard, and start"),
    ("client-BarriersOvertake", 2, "differs from what was written"),
    ("client-BurntChunkUsedAgain", 3, "after it was freed"),
    ("client-CommitsBeforeDurable", 0, "is not durable"),
    ("client-FrozenWrittenUnderNext", 16, "came behind what its successor synced"),
    ("client-LeaseFromAnswer", 64, "which the table has ended"),
    ("client-LossUntold", 40, "a mount does not end well"),
    ("client-NewNumberOnRetry", 14, "being answered"),
    ("client-OlderAnswersBelieved", 171, "differs from what was written"),
    ("client-OlderMapsBelieved", 95, "differs from what was written"),
    ("client-ParityNarrowed", 3, "with 0 parity shards of 1"),
    ("client-RoomElsewhereIgnored", 88, "given up for want of space"),
];

/// Names of rules that no seed finds broken, each with the reason.
const NOT_FOUND: &[(&str, &str)] = &[
    ("metanode-VacatedSlotsTaken", "nobody vacates slots yet"),
    ("datanode-PunchUnderReaders", "reads and holes do not overlap in one thread"),
];

#[test]
fn every_sabotage_stands_among_the_found_or_among_those_that_are_not() {
    let listed = FOUND.iter().map(|(name, ..)| *name).chain(NOT_FOUND.iter().map(|(name, _)| *name));
    let (listed, all): (Vec<&str>, Vec<String>) = (listed.collect(), Sabotage::names());
    let sets = |names: &[&str]| -> BTreeSet<String> { names.iter().map(|name| (*name).to_owned()).collect() };
    assert_eq!((sets(&listed), listed.len()), (all.iter().cloned().collect(), all.len()));
}

#[test]
fn each_broken_rule_is_found_by_its_seed() {
    for (name, seed, says) in FOUND {
        let sabotage = Sabotage::named(name).unwrap_or_else(|| panic!("there is no sabotage {name}"));
        let why = run(*seed, Options { sabotage, shown: false }).err();
        let why = why.unwrap_or_else(|| panic!("seed {seed} does not find {name}"));
        assert!(why.contains(says), "{name}, seed {seed}: {why}");
    }
}
