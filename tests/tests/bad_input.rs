//! Bad input gets a plain sentence and a non-zero exit, and changes nothing.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

use holdfast_tests::command::{Ended, holdfast_binary};
use holdfast_tests::manifest::Manifest;
use holdfast_tests::namespace::is_mounted;
use holdfast_tests::wait::seconds;
use holdfast_tests::{Claim, Cluster, Room, Run, claims};
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;

const CLAIMS: &[Claim] = &claims![
    90 => an_unknown_volume_is_refused,
    60 => a_code_mode_larger_than_the_cluster_is_refused,
    60 => malformed_words_are_refused,
    60 => an_address_where_nobody_answers_is_said,
    60 => a_port_in_use_is_refused,
    60 => a_second_up_on_the_same_directory_is_refused,
    60 => a_mount_point_that_is_a_file_is_refused,
    60 => a_mount_point_that_is_not_empty_is_refused,
    60 => a_mount_point_inside_the_data_or_the_reverse_is_refused,
    60 => a_machine_without_dev_fuse_is_told,
    60 => a_directory_that_is_no_cluster_is_left_alone,
    60 => a_directory_that_was_not_formatted_is_not_served,
    120 => a_directory_of_another_cluster_is_refused,
    120 => a_newer_format_is_refused,
];

fn main() -> ExitCode {
    holdfast_tests::room::run(CLAIMS)
}

/// Demands a failure that says in a plain sentence what these words are about.
#[track_caller]
fn assert_refused(ended: &Ended, words: &[&str]) {
    let code = ended.status.and_then(|status| status.code());
    assert!(code.is_some_and(|code| code != 0), "it was not refused: {}", ended.describe());
    let said = ended.stderr.trim();
    let plain = ["panicked", "RUST_BACKTRACE", "stack backtrace", "Err(", "Os {", "Status {", "::"];
    assert!(
        !said.is_empty() && plain.iter().all(|sign| !said.contains(sign)),
        "no plain sentence: {}",
        ended.describe()
    );
    assert!(said.lines().count() <= 8, "a sentence, not a page: {}", ended.describe());
    for word in words {
        assert!(said.contains(word), "'{word}' is not said: {}", ended.describe());
    }
}

/// `up` with these arguments, which is to fail.
fn up(data: &Path, mount: &Path, more: &[&str]) -> Ended {
    let run = Run::holdfast().arg("up").arg("--dir").arg(data).arg("--mount").arg(mount);
    run.args(["--listen", "127.0.0.1:0", "--separate-processes", "--json"]).args(more).limit(seconds(40)).end()
}

fn mount(cluster: &Cluster, volume: &str, point: &Path) -> Ended {
    let source = format!("{}/{volume}", cluster.ready().volmgr);
    Run::holdfast().arg("mount").arg(source).arg(point).limit(seconds(40)).end()
}

fn volumes(cluster: &Cluster) -> String {
    let listed: serde_json::Value = serde_json::from_str(&cluster.admin_ok(&["volume", "list", "--json"])).unwrap();
    let entries = listed.as_array().or_else(|| listed["volumes"].as_array()).unwrap().clone();
    let names: Vec<String> = entries.iter().map(|volume| volume["name"].to_string()).collect();
    names.join(" ")
}

fn an_unknown_volume_is_refused(room: &mut Room) {
    let point = room.local_directory();
    let cluster = room.cluster();
    let before = volumes(cluster);
    assert_refused(&mount(cluster, "nosuch", &point), &["nosuch"]);
    assert!(!is_mounted(&point));
    assert_refused(&cluster.admin(&["volume", "show", "nosuch"]), &["nosuch"]);
    assert_refused(&cluster.admin(&["volume", "delete", "nosuch"]), &["nosuch"]);
    assert_refused(&cluster.admin(&["volume", "create", "demo"]), &["demo"]);
    assert_eq!(volumes(cluster), before);
}

fn a_code_mode_larger_than_the_cluster_is_refused(room: &mut Room) {
    let local = room.local_directory();
    let cluster = room.cluster();
    let before = volumes(cluster);
    assert_refused(&cluster.admin(&["volume", "create", "wide", "--code", "5+2"]), &["5+2", "6"]);
    assert_eq!(volumes(cluster), before);
    assert_refused(&up(&local.join("data"), &local.join("mnt"), &["--code", "8+4"]), &["8+4", "12"]);
    assert_eq!(fs::read_dir(&local).unwrap().count(), 0, "the refused up left something");
}

fn malformed_words_are_refused(room: &mut Room) {
    let point = room.local_directory();
    let cluster = room.cluster();
    let before = volumes(cluster);
    for (option, value) in
        [("--code", "4"), ("--code", "0+2"), ("--code", "4+0"), ("--code", "40+2"), ("--quota", "much")]
    {
        assert_refused(&cluster.admin(&["volume", "create", "new", option, value]), &[value]);
    }
    for name in ["", "a/b", "..", "with space", &"n".repeat(300)] {
        assert_refused(&cluster.admin(&["volume", "create", name]), &[]);
    }
    assert_refused(&Run::holdfast().args(["mount", "nonsense"]).arg(&point).end(), &["nonsense"]);
    assert_refused(&Run::holdfast().arg("nonsense").end(), &["nonsense"]);
    let unknown_option = mount_with_option(cluster, &point, "nonsense=1");
    assert_refused(&unknown_option, &["nonsense"]);
    assert!(!is_mounted(&point));
    assert_eq!(volumes(cluster), before);
}

fn mount_with_option(cluster: &Cluster, point: &Path, option: &str) -> Ended {
    let source = format!("{}/demo", cluster.ready().volmgr);
    Run::holdfast().arg("mount").arg(source).arg(point).args(["-o", option]).limit(seconds(40)).end()
}

fn an_address_where_nobody_answers_is_said(room: &mut Room) {
    let point = room.local_directory();
    // Bound and let go: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    assert_refused(&Run::holdfast().args(["volume", "list", "--volmgr", &address]).end(), &[&address]);
    let mounted = Run::holdfast().arg("mount").arg(format!("{address}/demo")).arg(&point).limit(seconds(50)).end();
    assert_refused(&mounted, &[&address]);
    assert!(!is_mounted(&point));
}

fn a_port_in_use_is_refused(room: &mut Room) {
    let local = room.local_directory();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, port) =
        (listener.local_addr().unwrap().to_string(), listener.local_addr().unwrap().port().to_string());
    let run = Run::holdfast().arg("up").arg("--dir").arg(local.join("data")).arg("--mount").arg(local.join("mnt"));
    assert_refused(
        &run.args(["--listen", &address, "--separate-processes"]).limit(seconds(40)).end(),
        &[&port, "in use"],
    );
    assert_eq!(fs::read_dir(&local).unwrap().count(), 0, "the refused up left something");
}

fn a_second_up_on_the_same_directory_is_refused(room: &mut Room) {
    let local = room.local_directory();
    let cluster = room.cluster();
    fs::write(cluster.mount().join("file"), "kept").unwrap();
    let data = cluster.data();
    assert_refused(&up(&data, &local.join("mnt"), &[]), &[data.to_str().unwrap()]);
    assert_refused(&up(&data, &cluster.mount(), &[]), &[]);
    assert_eq!(fs::read_dir(&local).unwrap().count(), 0, "the refused up left something");
    // The first one is not disturbed.
    assert_eq!(fs::read(cluster.mount().join("file")).unwrap(), b"kept");
    fs::write(cluster.mount().join("file"), "written").unwrap();
}

fn a_mount_point_that_is_a_file_is_refused(room: &mut Room) {
    let local = room.local_directory();
    fs::write(local.join("file"), "mine").unwrap();
    let cluster = room.cluster();
    assert_refused(&mount(cluster, "demo", &local.join("file")), &["file"]);
    assert_refused(&up(&local.join("data"), &local.join("file"), &[]), &["file"]);
    assert_eq!(fs::read(local.join("file")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(&local).unwrap().count(), 1, "the refused up left something");
}

fn a_mount_point_that_is_not_empty_is_refused(room: &mut Room) {
    let local = room.local_directory();
    fs::create_dir(local.join("full")).unwrap();
    fs::write(local.join("full/mine"), "mine").unwrap();
    let cluster = room.cluster();
    assert_refused(&mount(cluster, "demo", &local.join("full")), &["full", "empty"]);
    assert_refused(&up(&local.join("data"), &local.join("full"), &[]), &["full", "empty"]);
    assert_eq!(fs::read(local.join("full/mine")).unwrap(), b"mine");
    assert_eq!(fs::read_dir(&local).unwrap().count(), 1, "the refused up left something");
}

fn a_mount_point_inside_the_data_or_the_reverse_is_refused(room: &mut Room) {
    let local = room.local_directory();
    assert_refused(&up(&local.join("data"), &local.join("data/mnt"), &[]), &["inside"]);
    assert_refused(&up(&local.join("mnt/data"), &local.join("mnt"), &[]), &["inside"]);
    assert_refused(&up(&local.join("same"), &local.join("same"), &[]), &[]);
    assert_eq!(fs::read_dir(&local).unwrap().count(), 0, "the refused up left something");
}

fn a_machine_without_dev_fuse_is_told(room: &mut Room) {
    let local = room.local_directory();
    // A /dev of its own with the few nodes that any program needs.
    let nodes = "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9";
    let line = format!(
        "{nodes} && exec {} up --dir {} --mount {} --listen 127.0.0.1:0 --separate-processes",
        holdfast_binary().display(),
        local.join("data").display(),
        local.join("mnt").display()
    );
    let ended = Run::new("unshare").args(["--mount", "sh", "-c", &line]).limit(seconds(50)).end();
    assert_refused(&ended, &["/dev/fuse"]);
    assert_eq!(fs::read_dir(&local).unwrap().count(), 0, "the refused up left something");
}

fn a_directory_that_is_no_cluster_is_left_alone(room: &mut Room) {
    let local = room.local_directory();
    fs::create_dir(local.join("photos")).unwrap();
    fs::write(local.join("photos/one.jpg"), "mine").unwrap();
    let before = Manifest::of(&local);
    assert_refused(&up(&local.join("photos"), &local.join("mnt"), &[]), &["photos"]);
    let destroyed = Run::holdfast().args(["destroy", "--yes", "--dir"]).arg(local.join("photos")).end();
    assert_refused(&destroyed, &["photos"]);
    before.assert_same(&Manifest::of(&local), "the refused commands changed something");
}

fn a_directory_that_was_not_formatted_is_not_served(room: &mut Room) {
    let local = room.local_directory();
    fs::create_dir(local.join("empty")).unwrap();
    for role in ["volmgr", "metanode"] {
        let run = Run::holdfast().args([role, "serve", "--listen", "127.0.0.1:0", "--dir"]).arg(local.join("empty"));
        assert_refused(&run.limit(seconds(20)).end(), &["empty", "format"]);
    }
    let run = Run::holdfast().args(["datanode", "serve", "--listen", "127.0.0.1:0", "--dir"]).arg(local.join("empty"));
    assert_refused(&run.arg("--disk").arg(local.join("empty")).limit(seconds(20)).end(), &["empty", "format"]);
    assert_eq!(fs::read_dir(local.join("empty")).unwrap().count(), 0, "serving formatted something");
}

/// A cluster that was up once and is stopped.
fn stopped_cluster() -> Cluster {
    let mut cluster = Cluster::start(&[]);
    fs::write(cluster.mount().join("file"), "kept").unwrap();
    cluster.stop();
    cluster
}

/// Every file of a cluster, with its content; the times of directories are the kernel's business.
fn files_of(cluster: &Cluster) -> Manifest {
    let mut manifest = Manifest::of(&cluster.data());
    manifest.0.retain(|_, entry| entry.kind != "directory");
    manifest
}

fn a_directory_of_another_cluster_is_refused(room: &mut Room) {
    room.drop_cluster();
    let (mut one, other) = (stopped_cluster(), stopped_cluster());
    for role in ["volmgr", "meta-2", "data-3"] {
        let (own, kept) = (one.data().join(role), one.root().join("kept"));
        fs::rename(&own, &kept).unwrap();
        Run::new("cp").arg("-a").arg(other.data().join(role)).arg(&own).ok();
        let before = files_of(&one);
        let ended = up(&one.data(), &one.mount(), &[]);
        assert_refused(&ended, &["cluster"]);
        assert!(!is_mounted(&one.mount()));
        before.assert_same(&files_of(&one), &format!("{role} of another cluster: something was changed"));
        fs::remove_dir_all(&own).unwrap();
        fs::rename(&kept, &own).unwrap();
    }
    one.up();
    assert_eq!(fs::read(one.mount().join("file")).unwrap(), b"kept");
    one.stop();
}

/// The reflected CRC-32C, bit by bit: independent of what it checks.
fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 };
    !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

/// The same superblock as a program of the future would write it: magic (8), version (4), ..., CRC-32C (4).
fn of_the_future(superblock: &[u8]) -> Vec<u8> {
    let mut bytes = superblock.to_vec();
    let body = bytes.len() - 4;
    assert_eq!(bytes[body..], crc32c(&bytes[..body]).to_le_bytes(), "the superblock has another layout");
    bytes[8..12].copy_from_slice(&9999_u32.to_le_bytes());
    let crc = crc32c(&bytes[..body]).to_le_bytes();
    bytes[body..].copy_from_slice(&crc);
    bytes
}

fn a_newer_format_is_refused(room: &mut Room) {
    room.drop_cluster();
    let mut cluster = stopped_cluster();
    for place in ["superblock", "volmgr/superblock", "meta-1/superblock", "data-2/superblock", "data-5/disk/superblock"]
    {
        let path = cluster.data().join(place);
        let kept = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::write(&path, of_the_future(&kept)).unwrap();
        let before = files_of(&cluster);
        assert_refused(&up(&cluster.data(), &cluster.mount(), &[]), &["newer", "9999"]);
        before.assert_same(&files_of(&cluster), &format!("newer {place}: something was changed"));
        fs::write(&path, kept).unwrap();
    }
    cluster.up();
    assert_eq!(fs::read(cluster.mount().join("file")).unwrap(), b"kept");
    cluster.stop();
}
