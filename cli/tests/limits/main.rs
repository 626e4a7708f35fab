//! The limits under which a role runs.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod segments;

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A limit below what systems allow.
const OPEN_FILES: u64 = 256;
/// Longest wait for what must come, on a machine that stands still for a while.
const PATIENCE: Duration = Duration::from_secs(120);

/// A process that serves, and ends with the test.
struct Role {
    child: Child,
    address: SocketAddr,
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Role {
    /// Starts a role and waits until it is ready.
    fn serve<S: AsRef<OsStr>>(ulimit: &str, words: &[S]) -> Self {
        let mut command = holdfast(ulimit, words);
        let mut child = command.args(["--listen", "127.0.0.1:0", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
        let line = first_line(child.stdout.take().unwrap());
        // Dropped when it is not ready, and ends the process.
        let mut role = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        let line = line.recv_timeout(PATIENCE).expect("it does not get ready");
        assert!(line.contains("\"ready\":true"), "{line}");
        let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
        role.address = ready["address"].as_str().unwrap().parse().unwrap();
        role
    }

    /// Ends it as an operator does.
    fn stop(mut self) -> ExitStatus {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not stop");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The first line of an output, empty if it ends without one. A thread of its own reads it, so that a wait has an end.
fn first_line(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).unwrap();
        // Nobody waits any more if the test failed meanwhile.
        let _ = sender.send(line);
    });
    receiver
}

/// Limits of open files of a process, the soft and the hard one.
fn open_files_max(pid: u32) -> (u64, u64) {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap_or(u64::MAX));
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// The program, under a limit of open files: -S for the soft one, nothing for both.
fn holdfast<S: AsRef<OsStr>>(ulimit: &str, words: &[S]) -> Command {
    let mut command = Command::new("sh");
    let script = format!("ulimit {ulimit} -n {OPEN_FILES} && exec \"$0\" \"$@\"");
    command.args(["-c", &script, env!("CARGO_BIN_EXE_holdfast")]).args(words);
    command
}

#[test]
fn a_role_raises_the_limit_of_open_files_as_far_as_it_may() {
    let (_, hard) = open_files_max(std::process::id());
    assert!(hard > OPEN_FILES, "this system allows only {hard} open files: nothing can be raised");
    let temporary = tempfile::tempdir().unwrap();
    let home = temporary.path().join("home");
    let home = home.to_str().unwrap();
    assert!(holdfast("-S", &["volmgr", "format", "--dir", home]).output().unwrap().status.success());
    let role = Role::serve("-S", &["volmgr", "serve", "--dir", home]);
    assert_eq!(open_files_max(role.child.id()), (hard, hard));
}
