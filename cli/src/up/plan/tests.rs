//! What `up` refuses, and that refusing changes nothing.

use clap::Parser as _;

use super::*;
use crate::args::{Cli, Command};

fn args(line: &str) -> UpArgs {
    let words = std::iter::once("holdfast").chain(line.split_whitespace());
    match Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}")).command {
        Command::Up(args) => args,
        other => panic!("{other:?}"),
    }
}

fn up(dir: &Path, more: &str) -> UpArgs {
    args(&format!("up --dir {} --listen 127.0.0.1:0 {more}", dir.display()))
}

fn refused(args: &UpArgs) -> String {
    match prepare(args) {
        Ok(_) => panic!("it was not refused"),
        Err(error) => format!("{error:#}"),
    }
}

/// Everything below a directory, by path.
fn listing(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        found.push(entry.path());
        found.extend(listing(&entry.path()));
    }
    found.sort();
    found
}

#[test]
fn what_is_refused_changes_nothing() {
    let root = tempfile::tempdir().unwrap();
    let base = root.path().canonicalize().unwrap();
    let dir = base.join("new/dir");
    std::fs::write(base.join("file"), b"x").unwrap();
    std::fs::create_dir_all(base.join("full/x")).unwrap();
    let before = listing(&base);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap();
    let cases = [
        (up(&dir, "--no-mount --code 8+4"), "code 8+4 needs 12 disks, the cluster has 6"),
        (up(&dir, "--no-mount --volume=-x"), "cannot be a volume's name"),
        (up(&dir, "--no-mount --volume a/b"), "cannot be a volume's name"),
        (args(&format!("up --no-mount --dir {} --listen {port}", dir.display())), "is in use"),
        (up(&base.join("file"), "--no-mount"), "is not a directory"),
        (up(&base.join("full"), "--no-mount"), "is neither empty nor"),
        (up(&dir, &format!("--mount {}/mnt", dir.display())), "is inside the cluster's directory"),
        (up(&dir, &format!("--mount {}/new", base.display())), "is inside the mount point"),
        (up(&dir, &format!("--mount {}", dir.display())), "is inside"),
    ];
    for (args, reason) in cases {
        let error = refused(&args);
        assert!(error.contains(reason), "{error} does not say: {reason}");
        assert_eq!(listing(&base), before, "{reason}");
    }
}

#[test]
fn links_and_dots_do_not_hide_that_one_is_inside_the_other() {
    let root = tempfile::tempdir().unwrap();
    let base = root.path().canonicalize().unwrap();
    std::fs::create_dir_all(base.join("dir/below")).unwrap();
    std::os::unix::fs::symlink(base.join("dir"), base.join("link")).unwrap();
    std::fs::create_dir(base.join("other")).unwrap();
    let dir = resolve(&base.join("dir")).unwrap();
    for inside in ["link/mnt", "other/../dir/mnt", "link/below/../x/y", "link"] {
        let mount = resolve(&base.join(inside)).unwrap();
        assert!(check_apart(&dir, &mount).is_err(), "{inside} is {}", mount.display());
    }
    assert!(check_apart(&dir, &resolve(&base.join("dir-2")).unwrap()).is_ok());
}

#[test]
fn a_claimed_directory_is_in_use_and_taken_back_whole() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("a/b");
    let plan = prepare(&up(&dir, "--no-mount")).unwrap();
    assert!(dir.join("superblock").exists());
    let error = refused(&up(&dir, "--no-mount"));
    assert!(error.contains("is in use by another holdfast process"), "{error}");
    std::fs::create_dir_all(plan.layout.disk(0)).unwrap();
    plan.undo();
    assert_eq!(listing(root.path()), Vec::<PathBuf>::new());
}

#[test]
fn an_unfinished_first_start_is_begun_again_and_fewer_nodes_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("d");
    drop(prepare(&up(&dir, "--no-mount --datanodes 8")).unwrap());
    let error = refused(&up(&dir, "--no-mount --datanodes 6"));
    assert!(error.contains("has 8 datanodes; it cannot run with 6"), "{error}");
    let plan = prepare(&up(&dir, "--no-mount --metanodes 5")).unwrap();
    assert_eq!((plan.record.metanodes, plan.record.datanodes), (5, 8));
}
