//! Keeps the cores of a virtual machine from halting while this process is busy.
//!
//! A core without work halts, which in a virtual machine hands it to the host; to wake it again costs the core that has work
//! for it an exit to the host, and a request that goes through a dozen threads pays that a dozen times. PM QoS is the
//! kernel's interface for who cannot wait so long: while `/dev/cpu_dma_latency` is held open with 0 in it, cores without work
//! look for some instead. Decision 11 has what it costs and brings.
//!
//! The request concerns the whole machine, which a service shares with others. So `up` makes it by itself, for its children
//! too, and a role or a mount that was started alone only if the environment says so.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use tokio::time::Instant;

/// The environment variable that turns it on or off.
const VARIABLE: &str = "HOLDFAST_KEEP_AWAKE";
const YES: &str = "yes";
/// File that names the driver of idle cores. `haltpoll` is the driver for virtual machines; of others nothing was
/// measured.
const IDLE_DRIVER: &str = "/sys/devices/system/cpu/cpuidle/current_driver";
const IDLE_DRIVER_OF_GUESTS: &str = "haltpoll";
const LATENCY_DEVICE: &str = "/dev/cpu_dma_latency";
/// Interval of looks at the process.
const INTERVAL: Duration = Duration::from_millis(100);
/// So many times in a second its threads go to sleep when it is busy with small requests: an idle cluster in one process
/// does it 200 times, one that creates files 25,000 times.
const BUSY_SLEEPS_PER_S: f64 = 2_000.0;
/// After so many looks at a process that is not busy, cores may halt again.
const CALM_LOOKS: u32 = 3;

/// Starts the watch over this process, if the environment asks for it or says nothing and `by_default` is true. To be called
/// on a runtime.
///
/// # Errors
/// The variable says neither yes nor no.
pub(crate) fn start(by_default: bool) -> Result<()> {
    if wanted(std::env::var_os(VARIABLE).as_deref(), by_default)? {
        tokio::spawn(watch());
    }
    Ok(())
}

/// Lets a child process keep cores awake as this process, which does it by default, unless the environment says otherwise.
pub(crate) fn hand_down(child: &mut Command) {
    if std::env::var_os(VARIABLE).is_none_or(|value| value.is_empty()) {
        child.env(VARIABLE, YES);
    }
}

fn wanted(value: Option<&OsStr>, by_default: bool) -> Result<bool> {
    match value.map(OsStr::to_string_lossy).as_deref() {
        None | Some("") => Ok(by_default),
        Some(YES) => Ok(true),
        Some("no") => Ok(false),
        Some(other) => bail!("{VARIABLE} is '{other}'; it can be yes or no"),
    }
}

/// Watches this process and keeps cores awake while it is busy. Ends at once where that is of no use or not allowed.
async fn watch() {
    if std::fs::read_to_string(IDLE_DRIVER).is_ok_and(|driver| driver.trim() == IDLE_DRIVER_OF_GUESTS)
        && let Err(error) = keep_awake_while_busy().await
    {
        tracing::debug!(%error, "cores that have nothing to do halt");
    }
}

async fn keep_awake_while_busy() -> io::Result<()> {
    let mut ticks = tokio::time::interval_at(Instant::now() + INTERVAL, INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut activity = Activity::default();
    let mut held: Option<File> = None;
    let (mut before, mut since) = (sleeps()?, Instant::now());
    loop {
        ticks.tick().await;
        let (sleeps, now) = (sleeps()?, Instant::now());
        let busy = activity.look(sleeps.saturating_sub(before), now - since);
        (before, since) = (sleeps, now);
        match (busy, &held) {
            (true, None) => held = Some(ask_for_no_latency()?),
            (false, Some(_)) => held = None,
            _ => {}
        }
    }
}

/// Times that threads of this process went to sleep so far.
fn sleeps() -> io::Result<u64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    Ok(u64::try_from(usage.voluntary_context_switches()).unwrap_or(0))
}

/// Holds until it is closed.
fn ask_for_no_latency() -> io::Result<File> {
    let mut device = OpenOptions::new().write(true).open(LATENCY_DEVICE)?;
    device.write_all(&0i32.to_ne_bytes())?;
    Ok(device)
}

/// Whether the process counts as busy: from the first busy look to the last of a few calm ones.
#[derive(Default)]
struct Activity {
    busy: bool,
    calm_looks: u32,
}

impl Activity {
    /// Takes in that threads went to sleep `sleeps` times `over` a while.
    fn look(&mut self, sleeps: u64, over: Duration) -> bool {
        // Far below 2^52, where a float is exact.
        #[allow(clippy::cast_precision_loss)]
        let is_busy = sleeps as f64 >= BUSY_SLEEPS_PER_S * over.as_secs_f64();
        self.calm_looks = if is_busy { 0 } else { self.calm_looks.saturating_add(1) };
        self.busy = is_busy || (self.busy && self.calm_looks < CALM_LOOKS);
        self.busy
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(sleeps: &[u64]) -> Vec<bool> {
        let mut activity = Activity::default();
        sleeps.iter().map(|sleeps| activity.look(*sleeps, INTERVAL)).collect()
    }

    #[test]
    fn an_idle_cluster_lets_cores_halt() {
        assert_eq!(looks(&[20, 30, 19]), [false, false, false]);
    }

    #[test]
    fn work_keeps_them_awake_and_for_a_moment_longer() {
        assert_eq!(looks(&[20, 2_500, 0, 150, 0, 0]), [false, true, true, true, false, false]);
        assert_eq!(looks(&[2_500, 0, 0, 2_500, 0, 0, 0]), [true, true, true, true, true, true, false]);
    }

    #[test]
    fn a_late_look_counts_the_time_that_passed() {
        let mut activity = Activity::default();
        assert!(!activity.look(1_000, INTERVAL * 10));
        assert!(activity.look(1_000, INTERVAL));
    }

    #[test]
    fn the_environment_says_yes_or_no_or_leaves_it_to_the_command() {
        for by_default in [false, true] {
            let wanted = |value: &str| wanted(Some(OsStr::new(value)), by_default);
            assert_eq!(super::wanted(None, by_default).unwrap(), by_default);
            assert_eq!(wanted("").unwrap(), by_default);
            assert!(wanted("yes").unwrap() && !wanted("no").unwrap());
            assert_eq!(wanted("maybe").unwrap_err().to_string(), "HOLDFAST_KEEP_AWAKE is 'maybe'; it can be yes or no");
        }
    }

    #[test]
    fn children_of_up_do_as_up_does() {
        let mut child = Command::new("holdfast");
        hand_down(&mut child);
        // The environment of the tests says nothing; one that does is inherited as it is.
        let handed_down = child.get_envs().any(|pair| pair == (OsStr::new(VARIABLE), Some(OsStr::new(YES))));
        assert_eq!(handed_down, std::env::var_os(VARIABLE).is_none_or(|value| value.is_empty()));
    }

    #[test]
    fn going_to_sleep_is_counted() {
        let before = sleeps().unwrap();
        std::thread::sleep(Duration::from_millis(1));
        assert!(sleeps().unwrap() > before);
    }
}
