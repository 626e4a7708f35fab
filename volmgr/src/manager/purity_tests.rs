//! What the decisions of the volume manager must not name.

use std::path::{Path, PathBuf};

/// Words that mean I/O, waiting, a lock, a clock, randomness or an order that differs from run to run.
const FOREIGN: [&str; 13] = [
    "tokio",
    "tonic::",
    "std::fs",
    "Instant",
    "SystemTime",
    "random_bytes",
    "HashMap",
    "HashSet",
    "static ",
    "LazyLock",
    "Mutex",
    "thread::",
    "async ",
];

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if !path.file_stem().unwrap().to_str().unwrap().ends_with("tests") {
            found.push(path);
        }
    }
}

#[test]
fn the_decisions_name_no_runtime_clock_lock_randomness_or_hash_map() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let names = ["capacity.rs", "liveness.rs", "machine.rs", "manager.rs", "placement.rs", "state.rs", "stepped.rs"];
    let mut files = names.map(|name| source.join(name)).to_vec();
    sources(&source.join("manager"), &mut files);
    sources(&source.join("state"), &mut files);
    assert!(files.len() > 14, "the files were found");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code.take_while(|line| *line != "mod tests {") {
            let named = line.replace("'static ", "");
            let foreign = FOREIGN.iter().find(|word| named.contains(**word));
            assert!(foreign.is_none(), "{} names {foreign:?}: {line}", file.display());
        }
    }
}
