//! Appends to one file on one mount by some that keep their handle and some that open and close it for each line. The cluster
//! is one process, where answers come fastest and overtake each other most.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

use holdfast_tests::{Claim, Cluster, Room, claims};
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

const CLAIMS: &[Claim] = &claims![
    120 => appends_of_some_that_keep_and_some_that_reopen_the_file_all_land,
];

const ROUNDS: usize = 25;
const APPENDERS: usize = 5;
const LINES: usize = 200;

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

/// A size that came with an open or a close must not become the place of another's append.
fn appends_of_some_that_keep_and_some_that_reopen_the_file_all_land(room: &mut Room) {
    room.drop_cluster();
    let mut cluster = Cluster::prepare(&[]);
    cluster.set_one_process();
    cluster.up();
    for round in 0..ROUNDS {
        let path = cluster.mount().join(format!("{round}"));
        std::thread::scope(|scope| {
            let path = &path;
            (0..APPENDERS).for_each(|appender| drop(scope.spawn(move || append(path, appender))));
        });
        check(&path, round);
        fs::remove_file(&path).unwrap();
    }
    cluster.stop();
}

fn line(appender: usize, number: usize) -> String {
    format!("{appender} {number} {}", "x".repeat(40))
}

fn append(path: &Path, appender: usize) {
    let open = || -> File { OpenOptions::new().append(true).create(true).open(path).unwrap() };
    let write = |mut file: &File, number: usize| {
        let line = line(appender, number) + "\n";
        assert_eq!(file.write(line.as_bytes()).unwrap(), line.len());
    };
    if appender.is_multiple_of(2) {
        let kept = open();
        (0..LINES).for_each(|number| write(&kept, number));
    } else {
        (0..LINES).for_each(|number| write(&open(), number));
    }
}

fn check(path: &Path, round: usize) {
    let text = fs::read_to_string(path).unwrap();
    let there: BTreeSet<&str> = text.lines().collect();
    let all = (0..APPENDERS).flat_map(|appender| (0..LINES).map(move |number| line(appender, number)));
    let lost: Vec<_> = all.filter(|line| !there.contains(line.as_str())).collect();
    assert!(lost.is_empty(), "round {round}: {} lines were lost: {lost:?}", lost.len());
    assert_eq!(text.lines().count(), APPENDERS * LINES, "round {round}: lines that nobody wrote");
}
