//! `holdfast metanode recover`: brings a metanode back that lost its log, and says how it goes.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Result, bail};
use holdfast_metanode::{RecoverConfig, RecoverProgress, Recovered, recover};
use serde_json::{Value, json};

use crate::args::{RecoverArgs, volmgr_address};
use crate::output::show_size;
use crate::signals::Signals;

/// Bytes of a snapshot between two lines about it.
const REPORT_BYTES: u64 = 64 << 20;

pub(crate) async fn run(args: RecoverArgs) -> Result<()> {
    let mut signals = Signals::listen()?;
    let volmgr = volmgr_address(args.volmgr);
    let config = RecoverConfig { directory: args.dir.clone(), volmgr: volmgr.clone() };
    let mut report = Report::default();
    let tell = |progress| {
        if let Some(sentence) = report.sentence(&progress) {
            eprintln!("{sentence}");
        }
    };
    let recovered = tokio::select! {
        recovered = recover(config, tell) => recovered?,
        () = signals.next() => bail!("interrupted; to go on, run the same command again"),
    };
    if args.json {
        println!("{}", report.json(&recovered));
    } else {
        let dir = args.dir.display();
        println!(
            "node {} is back; start it with: holdfast metanode serve --dir {dir} --volmgr {volmgr}",
            recovered.node
        );
    }
    Ok(())
}

/// Sentences for a person, each said once.
#[derive(Default)]
struct Report {
    set_aside: Option<PathBuf>,
    waits: BTreeSet<String>,
}

impl Report {
    fn sentence(&mut self, progress: &RecoverProgress) -> Option<String> {
        match progress {
            RecoverProgress::Begun { lost, set_aside } => {
                self.set_aside.clone_from(set_aside);
                let kept =
                    set_aside.as_ref().map(|path| format!("; what was left of it is kept at {}", path.display()));
                Some(format!("{lost}{}", kept.unwrap_or_default()))
            }
            RecoverProgress::Resumed => Some("going on where an earlier run ended".to_owned()),
            RecoverProgress::Waits(what) => self.waits.insert(what.clone()).then(|| what.clone()),
            RecoverProgress::Receiving { done_bytes, .. } if done_bytes % REPORT_BYTES != 0 => None,
            RecoverProgress::Receiving { volume, from, done_bytes: 0, bytes } => {
                Some(format!("volume '{volume}': receiving {} from node {from}", show_size(*bytes)))
            }
            RecoverProgress::Receiving { volume, done_bytes, bytes, .. } => {
                Some(format!("volume '{volume}': {} of {} are here", show_size(*done_bytes), show_size(*bytes)))
            }
            RecoverProgress::Table(table) => {
                // The next table's waits are news, also in the same words.
                self.waits.clear();
                Some(format!("volume '{}' is back, {}", table.volume, show_size(table.bytes)))
            }
        }
    }

    fn json(&self, recovered: &Recovered) -> Value {
        let table = |table: &holdfast_metanode::RecoveredTable| json!({ "volume": table.volume, "from": table.from.0, "bytes": table.bytes });
        json!({
            "recovered": true,
            "node": recovered.node.0,
            "set_aside": self.set_aside,
            "tables": recovered.tables.iter().map(table).collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_metanode::RecoveredTable;

    #[test]
    fn everything_is_said_once() {
        let mut report = Report::default();
        let waits = RecoverProgress::Waits("node 2 does not answer".to_owned());
        assert_eq!(report.sentence(&waits), Some("node 2 does not answer".to_owned()));
        assert_eq!(report.sentence(&waits), None);
        let receiving = |done_bytes| RecoverProgress::Receiving {
            volume: "demo".to_owned(),
            from: holdfast_common::NodeId(2),
            done_bytes,
            bytes: 70 << 20,
        };
        let said = [0, 1 << 20, 64 << 20].map(|done| report.sentence(&receiving(done)));
        assert!(said[0].is_some() && said[1].is_none() && said[2].is_some(), "{said:?}");
        let table = RecoveredTable { volume: "demo".to_owned(), from: holdfast_common::NodeId(2), bytes: 70 << 20 };
        assert!(report.sentence(&RecoverProgress::Table(table)).is_some());
        assert!(report.sentence(&waits).is_some(), "it is news again");
    }

    #[test]
    fn where_the_old_log_is_kept_is_said_and_in_json() {
        let mut report = Report::default();
        let kept = Some(PathBuf::from("d/consensus-lost-1"));
        let begun = RecoverProgress::Begun { lost: "there is no log".to_owned(), set_aside: kept };
        assert!(report.sentence(&begun).unwrap().ends_with("kept at d/consensus-lost-1"));
        let recovered = Recovered { node: holdfast_common::NodeId(3), tables: vec![] };
        let line = report.json(&recovered).to_string();
        assert_eq!(line, r#"{"node":3,"recovered":true,"set_aside":"d/consensus-lost-1","tables":[]}"#);
    }
}
