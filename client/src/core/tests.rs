//! Tests of the core by subject: sequences of inputs, and the effects that must come. And a list of what it must not name.

mod admission;
mod bench;
mod chunks;
mod flush;
mod operations;
mod random;
mod reading;
mod upkeep;

use std::path::Path;

/// Words that mean I/O, waiting, a clock, randomness or an order that differs from run to run.
const FOREIGN: [&str; 9] =
    ["tokio", "std::fs", "std::net::Tcp", "Instant", "SystemTime", "RandomState", "HashMap", "HashSet", "async "];

fn sources(directory: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("tests") {
                sources(&path, found);
            }
        } else if !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

#[test]
fn the_core_names_no_runtime_file_clock_randomness_or_hash_map() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![source.join("core.rs")];
    sources(&source.join("core"), &mut files);
    assert!(files.len() > 15, "the core's files were found");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code.take_while(|line| *line != "#[cfg(test)]") {
            let foreign = FOREIGN.iter().find(|word| line.contains(**word));
            assert!(foreign.is_none(), "{} names {foreign:?}: {line}", file.display());
        }
    }
}
