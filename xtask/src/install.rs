//! The install stage: only what is missing, from Debian's packages and crates.io.

use crate::command::{cargo, is_installed, succeeds};
use anyhow::{Result, bail};
use std::process::Command;

/// Programs that the tests run, and the Debian package of each.
const TEST_PROGRAMS: &[(&str, &str)] = &[
    ("cc", "build-essential"),
    ("make", "build-essential"),
    ("git", "git"),
    ("fio", "fio"),
    ("sqlite3", "sqlite3"),
    ("setfattr", "attr"),
    ("mkfs.ext4", "e2fsprogs"),
    ("diff", "diffutils"),
    ("tar", "tar"),
    ("xz", "xz-utils"),
    ("setpriv", "util-linux"),
    ("unshare", "util-linux"),
];

/// Programs that the benchmark runs.
const BENCH_PROGRAMS: &[(&str, &str)] = &[("cc", "build-essential"), ("fio", "fio")];

/// Pinned, so that a new release cannot turn a green tree red.
const CARGO_DENY_VERSION: &str = "0.20.2";

/// Everything that the test task needs, crates of all targets among them: cargo deny works offline on them.
pub(crate) fn tools_of_test() -> Result<()> {
    debian_packages(TEST_PROGRAMS)?;
    toolchain_components()?;
    if !is_installed("cargo-deny") && !is_in_cargo_home("cargo-deny") {
        // A debug build: it runs for a second, an optimised one would take minutes longer to make than it saves.
        let arguments = ["install", "--locked", "--debug", "--no-default-features", "--quiet", "--version"];
        require(cargo().args(arguments).args([CARGO_DENY_VERSION, "cargo-deny"]))?;
    }
    require(cargo().args(["fetch", "--locked", "--quiet"]))
}

/// Programs of the soak.
pub(crate) fn tools_of_soak() -> Result<()> {
    debian_packages(TEST_PROGRAMS)
}

/// Needs of the benchmark.
pub(crate) fn tools_of_bench() -> Result<()> {
    debian_packages(BENCH_PROGRAMS)
}

fn debian_packages(programs: &[(&str, &'static str)]) -> Result<()> {
    let mut packages: Vec<&str> =
        programs.iter().filter(|(program, _)| !is_installed(program)).map(|(_, package)| *package).collect();
    packages.sort_unstable();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    if !is_installed("apt-get") {
        bail!("please install with your package manager what Debian calls: {}", packages.join(" "));
    }
    // An old list names versions that the mirror no longer has.
    require(Command::new("apt-get").args(["update", "-qq"]))?;
    require(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages),
    )
}

fn toolchain_components() -> Result<()> {
    for (program, component) in [("cargo-fmt", "rustfmt"), ("cargo-clippy", "clippy")] {
        if !is_installed(program) && !is_in_cargo_home(program) {
            require(Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    Ok(())
}

/// `cargo install` and rustup put programs where cargo finds them, on the path or not.
fn is_in_cargo_home(program: &str) -> bool {
    let home = std::env::var_os("CARGO_HOME")
        .map(std::path::PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| std::path::Path::new(&home).join(".cargo")));
    home.is_some_and(|home| home.join("bin").join(program).is_file())
}

fn require(command: &mut Command) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    if succeeds(command)? { Ok(()) } else { bail!("{program} failed; its output is above") }
}
