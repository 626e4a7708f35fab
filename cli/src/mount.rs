//! `holdfast mount`: mounts a volume, in a process of its own that goes to the background when the mount is ready.
//!
//! The fork comes before any thread exists. The parent waits for one word from the child and takes its exit code from
//! it, so that mount(8) and scripts know whether it worked.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use holdfast_client_fuse::{MountOptions, MountPoint, SessionEnd};
use nix::fcntl::OFlag;
use nix::unistd::{ForkResult, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, pipe2, setsid};
use serde_json::json;

use crate::args::MountArgs;
use crate::mounting::{MEMORY_BYTES_DEFAULT, MountRequest, Mounted};
use crate::output::parse_size;
use crate::signals::Signals;
use crate::wakefulness;

/// Word of the child when the mount is ready; anything else is the reason why it is not.
const READY: &str = "ready";
/// Least budget that holds a few chunks being written.
const MEMORY_BYTES_MIN: u64 = 32 << 20;

struct Request {
    volmgr: String,
    volume: String,
    target: PathBuf,
    options: MountOptions,
    memory_bytes: usize,
}

/// Runs the command; must be called before any other thread exists.
pub(crate) fn run(args: &MountArgs) -> Result<()> {
    let request = request_of(args)?;
    let target = request.target.clone();
    let ready = |pid: u32| {
        if args.json {
            println!("{}", json!({ "ready": true, "source": args.source, "mount": target, "pid": pid }));
        }
    };
    if args.foreground {
        return crate::block_on(serve(request, || ready(std::process::id())));
    }
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    // SAFETY: no other thread exists yet, so that the child inherits no lock held by a thread that it does not have.
    match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Parent { child } => {
            drop(writer);
            let mut word = String::new();
            File::from(reader).read_to_string(&mut word).context("cannot read from the mounting process")?;
            match word.as_str() {
                READY => ready(child.as_raw().unsigned_abs()),
                "" => bail!("the mounting process ended without a word"),
                reason => bail!("{reason}"),
            }
            Ok(())
        }
        ForkResult::Child => {
            drop(reader);
            std::process::exit(in_background(request, File::from(writer)))
        }
    }
}

/// The life of the background process; answers its exit code.
fn in_background(request: Request, writer: File) -> i32 {
    let mut writer = Some(writer);
    let on_ready = || {
        if let Some(mut writer) = writer.take() {
            leave_terminal();
            // A parent that was killed cannot be told; the mount stands anyway.
            let _ = writer.write_all(READY.as_bytes());
        }
    };
    let outcome = setsid().context("cannot leave the terminal").and_then(|_| crate::block_on(serve(request, on_ready)));
    if let (Err(error), Some(mut writer)) = (&outcome, writer) {
        let _ = writer.write_all(format!("{error:#}").as_bytes());
    }
    i32::from(outcome.is_err())
}

/// Holds neither the terminal nor a directory that somebody wants to unmount.
fn leave_terminal() {
    let _ = chdir("/");
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        let _ = dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).and_then(|()| dup2_stderr(&null));
    }
}

fn request_of(args: &MountArgs) -> Result<Request> {
    let problem = || format!("'{}' names no volume: HOST:PORT/VOLUME, as 127.0.0.1:7400/demo", args.source);
    let (volmgr, volume) = args.source.split_once('/').with_context(problem)?;
    let (host, port) = volmgr.rsplit_once(':').with_context(problem)?;
    if host.is_empty() || port.parse::<u16>().is_err() || volume.is_empty() {
        bail!(problem());
    }
    let mut memory_bytes = MEMORY_BYTES_DEFAULT;
    let mut options = Vec::new();
    for option in &args.options {
        match option.split_once('=') {
            Some(("memory", size)) => {
                let size = parse_size(size)?;
                if size < MEMORY_BYTES_MIN {
                    bail!("memory={} is too little: at least 32M", option);
                }
                memory_bytes = usize::try_from(size).context("memory")?;
            }
            _ if args.sloppy && MountOptions::parse(option).is_err() => {}
            _ => options.push(option.as_str()),
        }
    }
    Ok(Request {
        volmgr: volmgr.to_owned(),
        volume: volume.to_owned(),
        target: std::path::absolute(&args.target).with_context(|| format!("'{}' is no path", args.target.display()))?,
        options: MountOptions::parse(&options.join(","))?,
        memory_bytes,
    })
}

/// Mounts, and serves until it is unmounted from outside or told to stop.
async fn serve(request: Request, on_ready: impl FnOnce()) -> Result<()> {
    wakefulness::start(false)?;
    let mut signals = Signals::listen()?;
    let target = request.target.clone();
    let point =
        tokio::task::spawn_blocking(move || MountPoint::prepare(&target, false)).await.context("mount point")??;
    let mounting = Mounted::start(MountRequest {
        volmgr: &request.volmgr,
        volume: &request.volume,
        point: &point,
        options: request.options,
        memory_bytes: request.memory_bytes,
    });
    let mounted = tokio::select! {
        mounted = mounting => mounted?,
        () = signals.next() => bail!("interrupted"),
    };
    on_ready();
    tokio::select! {
        end = mounted.wait() => match end {
            SessionEnd::Unmounted => mounted.finish().await,
            SessionEnd::Aborted => bail!("the mount at {} was aborted", point.path().display()),
            SessionEnd::Failed(reason) => bail!("the mount at {} failed: {reason}", point.path().display()),
        },
        () = signals.next() => {
            let say = |sentence: String| eprintln!("holdfast: {sentence}");
            tokio::select! {
                stopped = mounted.stop(say) => stopped,
                () = signals.next() => {
                    mounted.abort();
                    bail!("ended at once by a second signal; what was not flushed is lost")
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(source: &str, options: &str) -> Result<Request> {
        request_of(&MountArgs {
            source: source.to_owned(),
            target: "/mnt".into(),
            options: options.split(',').map(str::to_owned).collect(),
            foreground: true,
            json: false,
            fs_type: None,
            sloppy: false,
            no_mtab: false,
            verbose: false,
        })
    }

    #[test]
    fn a_source_names_host_port_and_volume() {
        let parsed = request("10.0.0.1:7400/demo", "ro,memory=64M").unwrap();
        assert_eq!((parsed.volmgr.as_str(), parsed.volume.as_str()), ("10.0.0.1:7400", "demo"));
        assert!(parsed.options.is_read_only());
        assert_eq!(parsed.memory_bytes, 64 << 20);
        for source in ["", "demo", "host/demo", ":7400/demo", "host:x/demo", "host:7400/", "host:7400"] {
            assert!(request(source, "").is_err(), "{source}");
        }
        assert!(request("h:1/v", "memory=1M").is_err());
        assert!(request("h:1/v", "nonsense").is_err());
    }
}
