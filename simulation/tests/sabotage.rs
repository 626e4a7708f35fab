//! The simulation proves that it can find things: each of these rules, broken, is found by the seed that found it first. The
//! table in `docs/TESTING.md` says the same.

use holdfast_simulation::{Options, Sabotage, run};

/// Names of rules, the seed that finds each, and a part of what it says.
const FOUND: &[(&str, u64, &str)] = &[
    ("consensus-AnswersBeforeSync", 88, "out of range"),
    ("consensus-VotesUnwritten", 113, "two leaders in term"),
    ("consensus-TailNotRewritten", 0, "the log contradicts itself"),
    ("consensus-ChecksumsIgnored", 12, "is damaged"),
    ("consensus-NeededSegmentsRecycled", 0, "the log contradicts itself"),
    ("consensus-SnapshotUnsynced", 58, "the snapshot is damaged"),
    ("metanode-RepliesForgotten", 0, "contents after entry"),
    ("metanode-TimeGoesBack", 2, "contents after entry"),
    ("metanode-SessionsExpiredEarly", 0, "was expired"),
    ("metanode-UnconfirmedChunksForgotten", 6, "still has a shard"),
    ("metanode-SilenceConfirms", 58, "still has a shard"),
    ("metanode-ChunkIdsGivenTwice", 0, "contents after entry"),
    ("metanode-SharedChunksFreed", 0, "contents after entry"),
    ("datanode-AnswerPutBeforeSync", 0, "data cannot be read"),
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
