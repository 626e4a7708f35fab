//! `holdfast volmgr|metanode|datanode format|serve`: one role in this process, until it is told to stop. `recover` is next door.

use std::io::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use holdfast_datanode::Process;
use serde_json::json;

use crate::args::{DatanodeCommand, MetanodeCommand, volmgr_address};
use crate::recover;
use crate::roles::{Lost, RoleConfig};
use crate::signals::Signals;
use crate::wakefulness;

/// Longest a role may take to stop; then it is ended as by a crash, which it survives.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// Runs `holdfast metanode ...`.
pub(crate) async fn metanode(command: MetanodeCommand) -> Result<()> {
    match command {
        MetanodeCommand::Format { dir } => {
            let listen = unused_address();
            format(RoleConfig::Metanode { dir, listen, volmgr: String::new() }).await
        }
        MetanodeCommand::Serve(args) => {
            let volmgr = volmgr_address(args.volmgr);
            serve(RoleConfig::Metanode { dir: args.dir, listen: args.listen, volmgr }, args.json).await
        }
        MetanodeCommand::Recover(args) => recover::run(args).await,
    }
}

/// Runs `holdfast datanode ...`.
pub(crate) async fn datanode(command: DatanodeCommand) -> Result<()> {
    match command {
        DatanodeCommand::Format { dir, disks } => {
            let listen = unused_address();
            format(RoleConfig::Datanode { dir, disks, listen, volmgr: String::new() }).await
        }
        DatanodeCommand::Serve { serve: args, disks } => {
            let volmgr = volmgr_address(args.volmgr);
            serve(RoleConfig::Datanode { dir: args.dir, disks, listen: args.listen, volmgr }, args.json).await
        }
    }
}

fn unused_address() -> std::net::SocketAddr {
    (std::net::Ipv4Addr::LOCALHOST, 0).into()
}

/// Formats a role's directory and says so.
pub(crate) async fn format(config: RoleConfig) -> Result<()> {
    config.format().await?;
    println!(
        "{} is formatted; start it with: holdfast {} serve --dir {0} ...",
        config.dir().display(),
        config.kind().name()
    );
    Ok(())
}

/// Serves until SIGINT or SIGTERM.
pub(crate) async fn serve(config: RoleConfig, json: bool) -> Result<()> {
    wakefulness::start(false)?;
    let mut signals = Signals::listen()?;
    let (kind, process) = (config.kind(), Process::default());
    let started = tokio::select! {
        started = Box::pin(config.start(&process)) => started,
        () = signals.next() => return Ok(()),
    };
    if let (true, Err(error)) = (json, &started)
        && let Some(Lost(reason)) = error.downcast_ref()
    {
        let _ = writeln!(std::io::stdout(), "{}", json!({ "ready": false, "role": kind.name(), "lost": reason }));
    }
    let role = started?;
    let address = role.address();
    let line = if json {
        json!({ "ready": true, "role": kind.name(), "address": address.to_string(), "pid": std::process::id() })
            .to_string()
    } else {
        format!("{} ready at {address}", kind.name())
    };
    // Whoever started this process may not read; that is no reason to stop.
    let _ = writeln!(std::io::stdout(), "{line}");
    tokio::select! {
        () = signals.next() => {}
        why = role.refused() => bail!("this {} serves no more: {why}", kind.name()),
    }
    tokio::select! {
        stopped = tokio::time::timeout(STOP_DEADLINE, role.shutdown()) => stopped.context("it did not stop in time"),
        () = signals.next() => bail!("stopped at once by a second signal"),
    }
}
