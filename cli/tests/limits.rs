//! The limits under which a role runs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A limit below what systems allow.
const SOFT_LIMIT: u64 = 256;

/// A process that ends with the test.
struct Role(Child);

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Limits of open files of a process, the soft and the hard one.
fn open_files_max(pid: u32) -> (u64, u64) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap_or(u64::MAX));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

fn holdfast(arguments: &str, directory: &Path) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit -S -n {SOFT_LIMIT} && exec \"$0\" {arguments} --dir \"$1\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_holdfast")]).arg(directory);
    command
}

#[test]
fn a_role_raises_the_limit_of_open_files_as_far_as_it_may() {
    let (_, hard) = open_files_max(std::process::id());
    assert!(hard > SOFT_LIMIT, "this system allows only {hard} open files: nothing can be raised");
    let temporary = tempfile::tempdir().unwrap();
    let home = temporary.path().join("home");
    assert!(holdfast("volmgr format", &home).output().unwrap().status.success());
    let mut serving = holdfast("volmgr serve --listen 127.0.0.1:0 --json", &home);
    let mut role = Role(serving.stdout(Stdio::piped()).spawn().unwrap());
    let mut line = String::new();
    BufReader::new(role.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(line.contains("\"ready\":true"), "{line}");
    assert_eq!(open_files_max(role.0.id()), (hard, hard));
}
