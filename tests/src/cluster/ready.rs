//! What `up` says once it is ready.

use crate::processes::ProcessId;
use serde_json::Value;

/// One role's process, as `up` reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// `datanode`, say.
    pub role: String,
    /// Which one of its role, from 0.
    pub index: u64,
    /// Its process now.
    pub pid: ProcessId,
    /// Where it listens; empty for a mount.
    pub address: String,
}

/// What `up` says when it is ready.
#[derive(Clone, Debug, Default)]
pub struct Ready {
    /// Where the volume manager listens.
    pub volmgr: String,
    /// The volume that is mounted.
    pub volume: String,
    /// The cluster's id.
    pub cluster: String,
    /// The roles' processes.
    pub processes: Vec<Process>,
}

/// `{"ready":true,"volmgr":"127.0.0.1:1","volume":"demo","processes":[{"role":..,"index":..,"pid":..,"address":..}],..}`
pub(super) fn parse_ready(line: &str) -> Option<Ready> {
    if line == "ready" {
        return Some(Ready::default());
    }
    let value: Value = serde_json::from_str(line).ok()?;
    if value["ready"] != true {
        return None;
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Some(Ready {
        volmgr: text(&value["volmgr"]),
        volume: text(&value["volume"]),
        cluster: text(&value["cluster"]),
        processes: value["processes"].as_array()?.iter().filter_map(parse_process).collect(),
    })
}

/// `{"role":"datanode","index":0,"pid":77,"address":"127.0.0.1:8",...}`
pub(super) fn parse_process(entry: &Value) -> Option<Process> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Some(Process {
        role: text(&entry["role"]),
        index: entry["index"].as_u64()?,
        pid: ProcessId::try_from(entry["pid"].as_u64()?).ok()?,
        address: text(&entry["address"]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line_is_understood_and_others_are_not() {
        let ready = parse_ready(
            r#"{"ready":true,"volmgr":"127.0.0.1:9","volume":"demo","cluster":"ab","processes":[{"role":"datanode","index":2,"pid":77,"address":"127.0.0.1:8"}]}"#,
        )
        .unwrap();
        assert_eq!((ready.volmgr.as_str(), ready.volume.as_str()), ("127.0.0.1:9", "demo"));
        assert_eq!((ready.processes[0].role.as_str(), ready.processes[0].pid), ("datanode", 77));
        assert!(parse_ready("starting metanode 1").is_none());
        assert!(parse_ready(r#"{"ready":false}"#).is_none());
    }
}
