//! Running other programs: echoed, with a deadline, output merged in the order it was written.

use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Profile of test programs and tools, this one among them.
pub(crate) const TESTS_PROFILE: &str = "tests";

/// Directory of test programs and tools: this one was built by the same cargo into the same directory.
pub(crate) fn tests_directory() -> Result<PathBuf> {
    let executable = std::env::current_exe().context("cannot find this program's own path")?;
    Ok(executable.parent().context("this program has no directory")?.to_owned())
}

/// Directory of what users run, beside the tests' one.
pub(crate) fn release_directory() -> Result<PathBuf> {
    Ok(tests_directory()?.with_file_name("release"))
}

/// Runs cargo with these arguments.
///
/// # Errors
/// It cannot be run, or fails.
pub(crate) fn build(arguments: &[&str]) -> Result<()> {
    let status = cargo().arg("build").args(arguments).status().context("cannot run cargo")?;
    anyhow::ensure!(status.success(), "the build failed");
    Ok(())
}

/// Whether a program is on the path.
pub(crate) fn is_installed(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    // Debian keeps mkfs and its like in directories that a user's path may lack.
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory: std::path::PathBuf| is_file(&directory.join(program)))
}

fn is_file(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file())
}

/// Runs to the end with the terminal's own output; whether it succeeded.
pub(crate) fn succeeds(command: &mut Command) -> Result<bool> {
    let shown = show(command);
    println!("$ {shown}");
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot run {shown}"))?;
    Ok(status.success())
}

fn show(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let words: Vec<_> = std::iter::once(program.file_name().unwrap_or(program.as_os_str()))
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    words.join(" ")
}

/// End of a captured run, with all it printed.
pub(crate) struct Captured {
    pub(crate) status: Option<ExitStatus>,
    pub(crate) output: String,
}

/// Runs with both outputs in one pipe, hands each line to `line` as it comes, and kills it at the deadline
/// (`status` is then `None`).
pub(crate) fn capture(command: &mut Command, limit: Duration, mut line: impl FnMut(&str)) -> Result<Captured> {
    let shown = show(command);
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let second = writer.try_clone().context("cannot duplicate a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(second)
        .spawn()
        .with_context(|| format!("cannot run {shown}"))?;
    // The command holds the writing ends until it is told otherwise, and the reader would never see the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for bytes in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(String::from_utf8_lossy(&bytes).into_owned()).is_err() {
                return;
            }
        }
    });
    let mut output = String::new();
    let deadline = Instant::now() + limit;
    let mut take = |text: String| {
        line(&text);
        output.push_str(&text);
        output.push('\n');
    };
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok(text) => take(text),
            Err(RecvTimeoutError::Disconnected) => break,
            // A grandchild may keep the pipe open: the child's end is the end.
            Err(RecvTimeoutError::Timeout) if child.try_wait()?.is_some() => {
                while let Ok(text) = lines.try_recv() {
                    take(text);
                }
                break;
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if Instant::now() > deadline {
            kill(&mut child);
            take(format!("xtask: killed after {} s: {shown}", limit.as_secs()));
            return Ok(Captured { status: None, output });
        }
    }
    let status = child.wait().context("cannot wait for a child")?;
    Ok(Captured { status: Some(status), output })
}

fn kill(child: &mut Child) {
    // Already gone is as good.
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_outputs_are_captured_and_the_status_is_kept() {
        let mut seen = 0;
        let captured =
            capture(Command::new("sh").args(["-c", "echo one; echo two >&2; exit 3"]), Duration::from_secs(20), |_| {
                seen += 1;
            })
            .unwrap();
        assert_eq!(captured.output, "one\ntwo\n");
        assert_eq!(captured.status.and_then(|s| s.code()), Some(3));
        assert_eq!(seen, 2);
    }

    #[test]
    fn a_program_that_does_not_end_is_killed_at_its_deadline() {
        let started = Instant::now();
        let captured = capture(Command::new("sleep").arg("30"), Duration::from_millis(300), |_| {}).unwrap();
        assert!(captured.status.is_none());
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_grandchild_that_keeps_the_pipe_open_does_not_hold_up_the_end() {
        let started = Instant::now();
        let captured =
            capture(Command::new("sh").args(["-c", "sleep 15 & echo done"]), Duration::from_secs(20), |_| {}).unwrap();
        assert_eq!(captured.output, "done\n");
        assert!(started.elapsed() < Duration::from_secs(10));
    }
}
