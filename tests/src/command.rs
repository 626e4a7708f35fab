//! Running programs in a room: tagged, in a process group of their own, with a deadline, their output kept.

use crate::variables;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// What a program gets if it says nothing else.
const DEFAULT_LIMIT: Duration = Duration::from_secs(60);

/// Where the `holdfast` under test is: `HOLDFAST_BIN`, or what users run, in `target/release`.
///
/// # Panics
/// If there is none: it has to be built first.
#[must_use]
pub fn holdfast_binary() -> PathBuf {
    let path = std::env::var_os(variables::BINARY)
        .map_or_else(|| tests_directory().with_file_name("release").join("holdfast"), PathBuf::from);
    assert!(path.is_file(), "{} is missing: cargo build --release --package holdfast", path.display());
    path
}

/// Directory of the programs and libraries that were built for the tests, this program among them.
pub(crate) fn tests_directory() -> PathBuf {
    let own = std::env::current_exe().expect("a process knows its executable");
    let directory = own.parent().expect("an executable is in a directory");
    // Test programs are one deeper, in target/tests/deps.
    let of_tests = if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
    of_tests.to_owned()
}

/// A command that carries the room's tag, in a process group of its own.
#[must_use]
pub fn tagged_command(program: impl AsRef<OsStr>, part: &str) -> Command {
    let mut command = Command::new(program);
    // A program does and prints what its user would see, whatever a developer has set.
    command.env_remove("RUST_BACKTRACE").env_remove("RUST_LOG").env_remove("HOLDFAST_KEEP_AWAKE");
    command
        .env(variables::ROOM, std::process::id().to_string())
        .env(variables::PART, part)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .process_group(0);
    command
}

/// One run of a program to its end.
#[derive(Debug)]
pub struct Run {
    command: Command,
    limit: Duration,
}

/// How it ended.
#[derive(Debug)]
pub struct Ended {
    /// `None`: it was killed at its deadline.
    pub status: Option<ExitStatus>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    shown: String,
}

impl Run {
    /// Prepares to run a program.
    #[must_use]
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        Self { command: tagged_command(program, "command"), limit: DEFAULT_LIMIT }
    }

    /// Prepares to run the `holdfast` under test.
    #[must_use]
    pub fn holdfast() -> Self {
        Self::new(holdfast_binary())
    }

    /// Prepares to run a line of shell.
    #[must_use]
    pub fn shell(line: &str) -> Self {
        Self::new("bash").args(["-euo", "pipefail", "-c", line])
    }

    /// One more argument.
    #[must_use]
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// More arguments.
    #[must_use]
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.command.args(arguments);
        self
    }

    /// The directory to run in.
    #[must_use]
    pub fn within(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// One variable of the environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// How long it may take; a minute if not said.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs it.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    #[must_use]
    pub fn end(mut self) -> Ended {
        let shown = show(&self.command);
        // Files, not pipes: nobody has to read while it runs, and a grandchild that holds them open holds up nothing.
        let mut stdout = tempfile::tempfile().expect("the temporary directory can be written");
        let mut stderr = tempfile::tempfile().expect("the temporary directory can be written");
        let copy = |file: &std::fs::File| file.try_clone().expect("a file can be duplicated");
        let spawned = self.command.stdout(copy(&stdout)).stderr(copy(&stderr)).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("cannot run {shown}: {error}"));
        let status = wait_or_kill(&mut child, self.limit);
        Ended { status, stdout: read_all(&mut stdout), stderr: read_all(&mut stderr), shown }
    }

    /// Runs it and demands success; its standard output.
    ///
    /// # Panics
    /// If it fails or does not end in time, with all it printed.
    #[track_caller]
    pub fn ok(self) -> String {
        let ended = self.end();
        assert!(ended.status.is_some_and(|status| status.success()), "{}", ended.describe());
        ended.stdout
    }
}

impl Ended {
    /// Everything there is to know, for a failure's message.
    #[must_use]
    pub fn describe(&self) -> String {
        let status = self.status.map_or_else(|| "killed at its deadline".to_owned(), |status| status.to_string());
        format!("{}\n{status}\n--- stdout\n{}\n--- stderr\n{}", self.shown, cut(&self.stdout), cut(&self.stderr))
    }
}

/// The last part of a long text.
fn cut(text: &str) -> &str {
    const SHOWN_BYTES: usize = 6000;
    let mut from = text.len().saturating_sub(SHOWN_BYTES);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

fn show(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    words.join(" ")
}

fn read_all(file: &mut std::fs::File) -> String {
    let mut bytes = Vec::new();
    file.rewind().expect("a temporary file can be rewound");
    file.read_to_end(&mut bytes).expect("a temporary file can be read");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a child's end; at the deadline its whole process group is killed. One that cannot be killed (it waits in
/// the kernel for a mount) is left to the watchdog.
pub fn wait_or_kill(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    if let Some(status) = crate::wait::until(limit, || child.try_wait().ok().flatten()) {
        return Some(status);
    }
    let group = Pid::from_raw(i32::try_from(child.id()).expect("process ids are below 2^22"));
    // It may have ended in this very moment.
    let _ = killpg(group, Signal::SIGKILL);
    crate::wait::until(Duration::from_secs(5), || child.try_wait().ok().flatten());
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_outputs_and_the_status_are_kept() {
        let ended = Run::shell("echo out; echo err >&2; exit 4").end();
        assert_eq!((ended.stdout.as_str(), ended.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(ended.status.and_then(|status| status.code()), Some(4));
    }

    #[test]
    fn a_program_and_its_children_are_killed_at_the_deadline() {
        let started = std::time::Instant::now();
        let ended = Run::shell("echo $$; sleep 60 & sleep 60").limit(Duration::from_millis(300)).end();
        assert!(ended.status.is_none() && started.elapsed() < Duration::from_secs(10));
    }
}
