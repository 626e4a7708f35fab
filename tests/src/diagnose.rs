//! What a failure prints: the ends of the logs, and where threads are stuck. Reads no mounted path.

use crate::{namespace, processes};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// How much of each log is shown.
const LOG_TAIL_BYTES: u64 = 6000;
/// How many logs are shown: one of each process of a cluster, and of its mounts.
const LOGS_SHOWN: usize = 24;

/// Prints threads that wait in the kernel, and what is mounted.
pub fn print_stuck_threads() {
    for line in namespace::mounts().iter().filter(|m| m.kind.starts_with("fuse")) {
        eprintln!("mounted: {} {} connection {}", line.point.display(), line.kind, line.minor);
    }
    for report in processes::stuck_threads() {
        eprintln!("stuck: {report}");
    }
}

/// Prints the end of every log below a cluster's directory, its mount points left out.
pub fn print_logs(root: &Path) {
    let mut logs = Vec::new();
    let mounted: Vec<PathBuf> = namespace::mounts().into_iter().map(|m| m.point).collect();
    collect_logs(root, &mounted, &mut logs);
    logs.sort();
    for log in logs.iter().take(LOGS_SHOWN) {
        match tail(log) {
            Ok(text) if !text.trim().is_empty() => eprintln!("---- end of {} ----\n{text}", log.display()),
            Ok(_) => {}
            Err(error) => eprintln!("---- {}: {error}", log.display()),
        }
    }
}

fn collect_logs(directory: &Path, mounted: &[PathBuf], logs: &mut Vec<PathBuf>) {
    if mounted.iter().any(|point| point == directory) {
        return;
    }
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        // The type comes with the entry: a mount point below is not touched.
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_logs(&path, mounted, logs);
        } else if path.extension().is_some_and(|e| e == "log" || e == "err") && is_text(&path) {
            logs.push(path);
        }
    }
}

/// A write-ahead log may be called `.log` too.
fn is_text(path: &Path) -> bool {
    let mut start = [0; 256];
    let read = File::open(path).and_then(|mut file| file.read(&mut start)).unwrap_or(0);
    std::str::from_utf8(&start[..read]).map_or_else(|e| e.error_len().is_none(), |text| !text.contains('\0'))
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
