//! What the store and the stepped node around it must not name, so that a simulation which steps them sees the same run each time.

use std::path::Path;

/// Words that mean a clock, a thread, a runtime, state of the whole process, or an order that differs from run to run.
const FOREIGN: [&str; 9] =
    ["Instant", "SystemTime", "HashMap", "HashSet", "static ", "LazyLock", "thread::", "tokio", "async "];

#[test]
fn the_store_and_the_stepped_node_name_no_clock_thread_runtime_static_or_hash_map() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = ["store.rs", "stepped.rs", "protocol.rs", "memory.rs"].map(|name| source.join(name)).to_vec();
    for entry in std::fs::read_dir(source.join("store")).unwrap() {
        let path = entry.unwrap().path();
        if !path.file_stem().unwrap().to_str().unwrap().ends_with("tests") {
            files.push(path);
        }
    }
    assert!(files.len() > 15, "the store's files were found");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        for line in code.take_while(|line| *line != "mod tests {") {
            // A lifetime is no static.
            let named = line.replace("'static ", "");
            let foreign = FOREIGN.iter().find(|word| named.contains(**word));
            assert!(foreign.is_none(), "{} names {foreign:?}: {line}", file.display());
        }
    }
}
