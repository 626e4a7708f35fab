//! The simulation proves that it can find things: each of these rules, broken, is found by the seed that found it first. The
//! table in `docs/TESTING.md` says the same.

use holdfast_simulation::{Options, Sabotage, run};

/// Names of rules, the seed that finds each, and a part of what it says.
const FOUND: &[(&str, u64, &str)] = &[
    ("consensus-AnswersBeforeSync", 58, "out of range"),
    ("consensus-VotesUnwritten", 10, "term should be set"),
    ("consensus-TailNotRewritten", 0, "the log contradicts itself"),
    ("consensus-ChecksumsIgnored", 3, "is damaged"),
    ("consensus-NeededSegmentsRecycled", 0, "the log contradicts itself"),
    ("consensus-SnapshotUnsynced", 3, "the snapshot is damaged"),
    ("consensus-AnswersBeforeSync", 16, "out of range"),
    ("consensus-FailedSyncRetried", 158, "acknowledged bytes"),
    ("consensus-VotesUnwritten", 8, "two leaders in term"),
    ("consensus-RestartedVotesAtOnce", 27, "never led to"),
    ("consensus-LeaseOutlivesPatience", 3, "never had the names"),
    ("consensus-ReadsWithoutQuorum", 7, "never had the names"),
    ("consensus-TailNotRewritten", 6, "the log contradicts itself"),
    ("consensus-ChecksumsIgnored", 6, "is damaged"),
    ("consensus-NeededSegmentsRecycled", 6, "the log contradicts itself"),
    ("consensus-SnapshotUnsynced", 3, "the snapshot is damaged"),
    ("consensus-AppliedAgain", 23, "contents after entry"),
    ("metanode-ReadsWithoutBarrier", 3, "never had the names"),
    ("metanode-RepliesForgotten", 0, "contents after entry"),
    ("metanode-TimeGoesBack", 3, "contents after entry"),
    ("metanode-SessionsExpiredEarly", 0, "was expired"),
    ("metanode-OpenFilesReaped", 0, "was reaped while client"),
    ("metanode-ReapedBeforeAttached", 3, "was reaped while client"),
    ("metanode-ReapedUnderCreates", 202, "it is open, and is gone"),
    ("metanode-FreedChunksDeletedAtOnce", 0, "after it was freed"),
    ("metanode-UnconfirmedChunksForgotten", 0, "is forgotten, and disk"),
    ("metanode-SilenceConfirms", 0, "is forgotten, and disk"),
    ("metanode-TruncatedCommitsTaken", 0, "contents after entry"),
    ("metanode-CommitsBelowFloorTaken", 0, "contents after entry"),
    ("metanode-FloorAtPresentId", 0, "after chunk 1 was given out"),
    ("metanode-LookedUpBeforePage", 0, "after it was freed"),
    ("metanode-FreedChunksOrphaned", 0, "after it was freed"),
    ("metanode-OwedNotWritten", 0, "contents after entry"),
    ("metanode-SweptClearsAll", 462, "contents after entry"),
    ("metanode-ChunkIdsGivenTwice", 0, "contents after entry"),
    ("metanode-SharedChunksFreed", 0, "contents after entry"),
    ("metanode-QuotaIgnored", 1, "contents after entry"),
    ("datanode-AnswerPutBeforeSync", 21, "data cannot be read"),
    ("volmgr-HearOlderGeneration", 13, "is heard, and start"),
    ("volmgr-ActivateUnready", 4, "its table was never ready"),
    ("volmgr-AnswerBeforeTable", 2, "its table was never ready"),
    ("volmgr-ConfirmUnreported", 2, "replicas of deleted volumes"),
    ("metanode-UnconfirmedChunksForgotten", 20, "still has a shard"),
    ("metanode-SilenceConfirms", 20, "still has a shard"),
    ("metanode-ChunkIdsGivenTwice", 0, "contents after entry"),
    ("metanode-SharedChunksFreed", 0, "contents after entry"),
    ("datanode-AnswerPutBeforeSync", 0, "was durable and is gone"),
    ("datanode-AnswerDeleteBeforeSync", 21, "was deleted or never put"),
    ("datanode-RetryFailedSync", 169, "is damaged on a disk that damages nothing"),
    ("datanode-ForgetFailure", 18, "its disk failed, and serves again"),
    ("datanode-OverwriteOtherShard", 0, "is taken, and attempt"),
    ("datanode-ServeAnyNonce", 0, "and was never put here or deleted"),
    ("datanode-DeleteAnyNonce", 0, "is taken, and attempt"),
    ("datanode-PutAfterDrop", 1, "and its volume was dropped"),
    ("datanode-IgnoreFloor", 0, "and it is below the floor"),
    ("datanode-AcceptTorn", 0, "is damaged on a disk that damages nothing"),
    ("datanode-ServeUnverified", 55, "with other bytes than were put"),
    ("datanode-IgnoreReservations", 4, "with what others have reserved"),
    ("datanode-ProofsIgnored", 0, "is done without a proof"),
];

#[test]
fn each_broken_rule_is_found_by_its_seed() {
    for (name, seed, says) in FOUND {
        let sabotage = Sabotage::named(name).unwrap_or_else(|| panic!("there is no sabotage {name}"));
        let why = run(*seed, Options { sabotage, shown: false }).err();
        let why = why.unwrap_or_else(|| panic!("seed {seed} does not find {name}"));
        assert!(why.contains(says), "{name}, seed {seed}: {why}");
    }
}
