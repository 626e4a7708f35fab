//! POSIX on the mount: names, open files, data, attributes, directories. Each claim says what Linux programs rely on, and
//! holds on ext4 too (`HOLDFAST_TEST_ON`), but for those that say otherwise.
#![allow(clippy::unwrap_used, reason = "every function here is a test")]

mod attributes;
mod data;
mod directories;
mod names;
mod open_files;

use std::process::ExitCode;

fn main() -> ExitCode {
    let claims = [names::CLAIMS, open_files::CLAIMS, data::CLAIMS, attributes::CLAIMS, directories::CLAIMS];
    holdfast_tests::room::run(&claims.concat())
}
