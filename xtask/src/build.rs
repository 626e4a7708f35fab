//! The build stage: the file system as users run it, everything else in the profile of the tests, and the list of test
//! programs that cargo made.

use crate::command::{self, TESTS_PROFILE, cargo};
use anyhow::{Context, Result};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// A program that cargo built to run tests.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TestProgram {
    /// As `holdfast-common`.
    pub(crate) package: String,
    /// The target's name: the crate for unit tests, the file for integration tests.
    pub(crate) target: String,
    /// Whether it is a file of the package's `tests/`.
    pub(crate) integration: bool,
    pub(crate) executable: PathBuf,
    /// Directory that cargo would run it in.
    pub(crate) directory: PathBuf,
}

/// Builds the workspace; `None` when it does not build (the reasons have been printed).
pub(crate) fn run() -> Result<Option<Vec<TestProgram>>> {
    command::build(&["--release", "--package", "holdfast"])?;
    // In one command: a package by itself may want other features of what it depends on, which is then compiled twice.
    let everything = ["--workspace", "--all-targets", "--message-format=json-render-diagnostics"];
    let mut child = cargo()
        .args(["build", "--profile", TESTS_PROFILE])
        .args(everything)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run cargo")?;
    let stdout = child.stdout.take().context("cargo has no output")?;
    let mut programs = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read what cargo says")?;
        programs.extend(serde_json::from_str(&line).ok().as_ref().and_then(test_program));
    }
    if !child.wait().context("cannot wait for cargo")?.success() {
        return Ok(None);
    }
    programs.sort();
    programs.dedup();
    Ok(Some(programs))
}

/// The test program that a message of cargo's tells of, if it does.
fn test_program(message: &Value) -> Option<TestProgram> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let directory = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    let kinds = message["target"]["kind"].as_array()?;
    Some(TestProgram {
        package: package_name(message["package_id"].as_str()?)?,
        target: message["target"]["name"].as_str()?.to_owned(),
        integration: kinds.iter().any(|kind| kind == "test"),
        executable: PathBuf::from(message["executable"].as_str()?),
        directory,
    })
}

/// `path+file:///code/common#holdfast-common@0.1.0` or, for a folder called like its package, `path+file:///w/xtask#0.1.0`.
fn package_name(id: &str) -> Option<String> {
    let (source, fragment) = id.split_once('#')?;
    let name = match fragment.split_once('@') {
        Some((name, _)) => name,
        None => source.rsplit('/').next()?,
    };
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_package_is_named_by_either_form_of_its_id() {
        assert_eq!(package_name("path+file:///w/common#holdfast-common@0.1.0").as_deref(), Some("holdfast-common"));
        assert_eq!(package_name("path+file:///w/xtask#0.1.0").as_deref(), Some("xtask"));
        assert_eq!(package_name("nonsense"), None);
    }

    #[test]
    fn only_artifacts_of_test_targets_are_test_programs() {
        let artifact = |test: bool, executable: Value| {
            json!({
                "reason": "compiler-artifact", "package_id": "path+file:///w/tests#holdfast-tests@0.1.0",
                "manifest_path": "/w/tests/Cargo.toml", "target": { "kind": ["test"], "name": "posix" },
                "profile": { "test": test }, "executable": executable,
            })
        };
        let program = test_program(&artifact(true, json!("/w/target/tests/deps/posix-1"))).unwrap();
        assert_eq!((program.target.as_str(), program.integration), ("posix", true));
        assert_eq!(program.directory, Path::new("/w/tests"));
        assert_eq!(test_program(&artifact(false, json!("/w/target/release/holdfast"))), None);
        assert_eq!(test_program(&artifact(true, Value::Null)), None);
    }
}
