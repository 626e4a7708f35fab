//! `holdfast up`: a complete cluster on this machine, brought up, mounted, watched, and stopped in good order.

mod absent;
mod cluster;
mod in_process;
pub(crate) mod layout;
mod members;
mod plan;
mod processes;
mod progress;

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use holdfast_client_fuse::{MountOptions, SessionEnd};
use serde_json::json;
use tokio::task::JoinHandle;

use self::cluster::{Cluster, Ready};
use self::members::{Absent, Event, RoleInfo};
use self::plan::Plan;
use self::progress::Progress;
use crate::args::UpArgs;
use crate::mounting::{MEMORY_BYTES_DEFAULT, MountRequest, Mounted};
use crate::signals::Signals;
use crate::wakefulness;

/// Longest from the start to a mounted volume.
const READY_DEADLINE: Duration = Duration::from_secs(30);
/// Longest from a signal to the end.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// Runs the command until a signal.
pub(crate) async fn run(args: UpArgs) -> Result<()> {
    wakefulness::start(true)?;
    let mut signals = Signals::listen()?;
    let progress = Progress::new();
    let asked = args.clone();
    // Looking at a mount point may block for seconds.
    let mut plan = tokio::task::spawn_blocking(move || plan::prepare(&asked)).await.context("the checks ended")??;
    let mut cluster = Cluster::new(args.separate_processes, &plan.layout)?;
    let came_up = tokio::select! {
        came_up = tokio::time::timeout(READY_DEADLINE, come_up(&mut cluster, &mut plan, &progress)) => came_up
            .unwrap_or_else(|_| Err(anyhow!("not ready within {} s: {}", READY_DEADLINE.as_secs(), progress.step()))),
        () = signals.next() => Err(anyhow!("interrupted while {}", progress.step())),
    };
    progress.clear();
    let (ready, mounted) = match came_up {
        Ok(came_up) => came_up,
        Err(error) => {
            if tokio::time::timeout(STOP_DEADLINE, cluster.stop()).await.is_err() {
                tracing::warn!("the roles that had started did not stop in time");
            }
            plan.undo();
            return Err(error);
        }
    };
    let teller = Teller { json: args.json };
    teller.ready(&plan, &ready);
    let standing = mounted.map_or(Standing::Nothing, Standing::Mounted);
    let standing = watch(&mut cluster, standing, &plan, &ready, &teller, &mut signals).await;
    stop(cluster, standing, &teller, &mut signals).await
}

async fn come_up(cluster: &mut Cluster, plan: &mut Plan, progress: &Progress) -> Result<(Ready, Option<Mounted>)> {
    let ready = cluster.bring_up(plan, progress).await?;
    let Some(point) = &plan.mount else { return Ok((ready, None)) };
    progress.say(format!("mounting at {}", point.path().display()));
    let request = MountRequest {
        volmgr: &ready.volmgr,
        volume: &plan.volume,
        point,
        options: MountOptions::default(),
        memory_bytes: MEMORY_BYTES_DEFAULT,
    };
    let mounted = Mounted::start(request).await?;
    Ok((ready, Some(mounted)))
}

/// The volume's mount during the life of a cluster.
enum Standing {
    /// There is none, or no more.
    Nothing,
    /// It is mounted.
    Mounted(Mounted),
    /// It was unmounted from outside, and what was written last is being flushed.
    Finishing(JoinHandle<Result<()>>),
}

impl Standing {
    /// Waits for the next change that nobody here asked for. May be dropped while waiting.
    async fn changed(&mut self) -> Change {
        match self {
            Self::Nothing => std::future::pending().await,
            Self::Mounted(mounted) => Change::Ended(mounted.wait().await),
            Self::Finishing(task) => Change::Finished(joined(task.await)),
        }
    }

    fn finishing(self) -> Self {
        match self {
            Self::Mounted(mounted) => Self::Finishing(tokio::spawn(mounted.finish())),
            other => other,
        }
    }
}

enum Change {
    Ended(SessionEnd),
    Finished(Result<()>),
}

fn joined(outcome: Result<Result<()>, tokio::task::JoinError>) -> Result<()> {
    outcome.unwrap_or_else(|error| Err(error.into()))
}

/// Tells what happens until a signal; answers how the mount stands then.
async fn watch(
    cluster: &mut Cluster,
    mut standing: Standing,
    plan: &Plan,
    ready: &Ready,
    teller: &Teller,
    signals: &mut Signals,
) -> Standing {
    loop {
        tokio::select! {
            () = signals.next() => return standing,
            event = cluster.next_event() => teller.event(&event),
            change = standing.changed() => match change {
                Change::Ended(end) => {
                    teller.unmounted(plan, ready, &end);
                    standing = standing.finishing();
                }
                Change::Finished(outcome) => {
                    standing = Standing::Nothing;
                    if let Err(error) = outcome {
                        teller.say(&format!("{error:#}"));
                    }
                }
            },
        }
    }
}

/// Flushes, unmounts and stops; a second signal, or the deadline, forces.
async fn stop(cluster: Cluster, mut standing: Standing, teller: &Teller, signals: &mut Signals) -> Result<()> {
    let is_mounted = matches!(standing, Standing::Mounted(_));
    teller.say(if is_mounted { "flushing, unmounting and stopping" } else { "stopping" });
    let orderly = async {
        let flushed = match &mut standing {
            Standing::Nothing => Ok(()),
            Standing::Mounted(mounted) => mounted.stop(|sentence| teller.say(&sentence)).await,
            Standing::Finishing(task) => joined(task.await),
        };
        cluster.stop().await;
        flushed
    };
    let forced = tokio::select! {
        stopped = tokio::time::timeout(STOP_DEADLINE, orderly) => match stopped {
            Ok(outcome) => return outcome,
            Err(_) => anyhow!("not stopped within {} s; ended at once", STOP_DEADLINE.as_secs()),
        },
        () = signals.next() => anyhow!("ended at once by a second signal; what was not flushed is lost"),
    };
    // Whoever waits for the mount comes back with an error; the children die with this process.
    if let Standing::Mounted(mounted) = &standing {
        mounted.abort();
    }
    Err(forced)
}

/// Reports: what came up on standard output, as a block for people or a line of JSON; what happens then on standard
/// error, in sentences, and with `--json` on standard output as well.
struct Teller {
    json: bool,
}

impl Teller {
    fn say(&self, sentence: &str) {
        // A terminal that went away is no reason to stop.
        let _ = writeln!(std::io::stderr(), "{sentence}");
    }

    fn line(&self, value: &serde_json::Value) {
        if self.json {
            let _ = writeln!(std::io::stdout(), "{value}");
        }
    }

    fn ready(&self, plan: &Plan, ready: &Ready) {
        let mount = plan.mount.as_ref().map(|point| point.path());
        self.line(&json!({
            "ready": true,
            "volmgr": ready.volmgr,
            "volume": ready.volume.name,
            "mount": mount,
            "pid": std::process::id(),
            "processes": ready.roles.iter().map(RoleInfo::json).collect::<Vec<_>>(),
            "absent": ready.absent.iter().map(absent_json).collect::<Vec<_>>(),
            "cluster": ready.cluster.to_string(),
        }));
        if !self.json {
            let _ = writeln!(std::io::stdout(), "{}", ready_text(plan, ready));
        }
        for Absent { role, reason } in &ready.absent {
            self.say(&format!(
                "{} does not serve, and is started when it is back: {reason}",
                role.kind.title(role.index)
            ));
        }
    }

    fn event(&self, event: &Event) {
        let (name, role, sentence) = match event {
            Event::Died { role, how } => ("died", role, format!("{how}; starting it again")),
            Event::Restarted { role } => ("restarted", role, "runs again".to_owned()),
            Event::NotRestarted { role, reason } => ("not_restarted", role, format!("could not be started: {reason}")),
        };
        let mut line = role.json();
        line["event"] = name.into();
        line["detail"] = sentence.clone().into();
        self.line(&line);
        self.say(&format!("{} (pid {}) {sentence}", role.kind.title(role.index), role.pid));
    }

    fn unmounted(&self, plan: &Plan, ready: &Ready, end: &SessionEnd) {
        let place = plan.mount.as_ref().map(|point| point.path().display().to_string()).unwrap_or_default();
        let what = match end {
            SessionEnd::Unmounted => format!("{place} was unmounted from outside"),
            SessionEnd::Aborted => format!("the mount at {place} was aborted from outside"),
            SessionEnd::Failed(reason) => format!("the mount at {place} failed: {reason}"),
        };
        self.line(&json!({ "event": "unmounted", "mount": place, "detail": what }));
        self.say(&format!(
            "{what}; the cluster goes on. Mount again with: holdfast mount {}/{} {place}",
            ready.volmgr, plan.volume
        ));
    }
}

fn absent_json(absent: &Absent) -> serde_json::Value {
    let Absent { role, reason } = absent;
    json!({ "role": role.kind.name(), "index": role.index, "directory": role.directory, "detail": reason })
}

fn ready_text(plan: &Plan, ready: &Ready) -> String {
    let addresses = |kind: &str| {
        let of_kind = ready.roles.iter().filter(|role| role.kind.name() == kind);
        of_kind.map(|role| role.address.clone()).collect::<Vec<_>>().join(" ")
    };
    let volume = &ready.volume;
    let made = if ready.created { "created" } else { "found" };
    let mut text = format!(
        "ready\n  cluster         {}\n  data            {}\n  volume manager  {}\n  metanodes       {}\n  datanodes       {}\n  volume          {} ({made}), code {}+{}\n",
        ready.cluster,
        plan.layout.dir().display(),
        ready.volmgr,
        addresses("metanode"),
        addresses("datanode"),
        volume.name,
        volume.data_shards,
        volume.parity_shards,
    );
    let Some(point) = &plan.mount else {
        text.push_str(&format!(
            "\nTry:\n  holdfast mount {}/{} DIR\n  holdfast volume list --volmgr {0}\n\nCtrl-C stops it.",
            ready.volmgr, volume.name
        ));
        return text;
    };
    let place = point.path().display();
    text.push_str(&format!(
        "  mounted at      {place}\n\nTry:\n  cp -a /usr/include {place}/ && diff -r /usr/include {place}/include\n  df -h {place}\n  holdfast volume show {} --volmgr {}\n\nCtrl-C unmounts and stops; the next 'up' finds everything again.",
        volume.name, ready.volmgr
    ));
    text
}
