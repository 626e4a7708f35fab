//! `make-golden NAME`: makes `tests/golden/NAME.tar.xz` and `NAME.manifest` with `target/release/holdfast`, or `HOLDFAST_BIN`.

use anyhow::{Context, Result, ensure};
use holdfast_tests::{Cluster, cluster, golden, namespace};

fn main() -> Result<()> {
    let name = std::env::args().nth(1).context("usage: make-golden NAME, the commit of the binary under test")?;
    let archive = golden::directory().join(format!("{name}.tar.xz"));
    ensure!(!archive.exists(), "{} is there already; a golden directory is never made again", archive.display());
    namespace::enter()?;
    let made = make(&archive, &golden::directory().join(format!("{name}.manifest")));
    cluster::remove_directory(&cluster::room_directory());
    made?;
    println!("{}: {} bytes", archive.display(), archive.metadata()?.len());
    Ok(())
}

fn make(archive: &std::path::Path, manifest: &std::path::Path) -> Result<()> {
    let mut cluster = Cluster::start(&[]);
    golden::fill(&cluster.mount());
    // An orderly stop, so that the index has checkpoints; then a death, so that the log has an end to find.
    cluster.stop();
    cluster.up();
    std::fs::write(manifest, golden::describe(&cluster.mount())).context("cannot write the manifest")?;
    let orphan = golden::leave_orphan(&cluster.mount());
    cluster.kill_everything();
    drop(orphan);
    golden::pack(&cluster.data(), archive);
    Ok(())
}
