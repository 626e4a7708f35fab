//! Modules that decide and do nothing else (D11), and the words that they must not name: a simulation that steps them
//! sees the same run each time.

use crate::source::Source;

/// Words that mean I/O, waiting, a clock, a thread, randomness, or an order that differs from run to run.
const FORBIDDEN: [&str; 15] = [
    "tokio",
    "tonic::",
    "async ",
    "std::fs",
    "std::net::Tcp",
    "std::env",
    "Instant",
    "SystemTime",
    "thread::",
    "LazyLock",
    "random_bytes",
    "rand::",
    "RandomState",
    "HashMap",
    "HashSet",
];

/// Modules with their children, and what is forbidden in them besides.
struct Room {
    modules: &'static [&'static str],
    also: &'static [&'static str],
}

const ROOMS: &[Room] = &[
    Room { modules: &["client/src/core"], also: &["Mutex"] },
    Room {
        modules: &[
            "consensus/src/core",
            "consensus/src/turn",
            "consensus/src/log/batch",
            "consensus/src/log/pins",
            "consensus/src/log/record",
            "consensus/src/log/replay",
        ],
        also: &["std::time", "clock::", "static ", "Mutex"],
    },
    Room {
        modules: &["datanode/src/memory", "datanode/src/protocol", "datanode/src/stepped", "datanode/src/store"],
        also: &["static "],
    },
    Room { modules: &["erasure/src"], also: &["std::time", "Mutex"] },
    Room {
        modules: &["metanode/src/core", "metanode/src/machine", "metanode/src/stepped", "metanode/src/table"],
        // Applying an entry must give the same table on every replica, so that not even a float is let in.
        also: &["std::time", "random", "f64", "static ", "Mutex"],
    },
    Room {
        modules: &[
            "volmgr/src/capacity",
            "volmgr/src/liveness",
            "volmgr/src/machine",
            "volmgr/src/manager",
            "volmgr/src/placement",
            "volmgr/src/state",
            "volmgr/src/stepped",
        ],
        also: &["static ", "Mutex"],
    },
];

/// Names in a source that it must not have. Comments may say what is not there, and tests may do what they like.
pub(crate) fn wrongs_of(name: &str, text: &str) -> Vec<String> {
    let rooms = ROOMS.iter().filter(|room| room.modules.iter().any(|module| is_of(name, module)));
    let forbidden: Vec<&str> = rooms.flat_map(|room| FORBIDDEN.iter().chain(room.also)).copied().collect();
    let mut wrongs = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap_or_default();
        // A lifetime is no static.
        let code = code.replace("'static ", "");
        for word in forbidden.iter().filter(|word| code.contains(**word)) {
            wrongs.push(format!("{number}: names '{}', which a module that only decides must not", word.trim_end()));
        }
    }
    wrongs
}

/// Modules of the table that none of the sources belongs to: they were moved, and the table was not.
pub(crate) fn missing(sources: &[Source]) -> Vec<String> {
    let modules = ROOMS.iter().flat_map(|room| room.modules);
    let gone = modules.filter(|module| !sources.iter().any(|source| is_of(&source.name, module)));
    gone.map(|module| format!("{module}: there is no such module to be kept pure")).collect()
}

/// Whether a file is a module's or one of its children's, and no test's.
fn is_of(name: &str, module: &str) -> bool {
    let is_test = || name.split('/').any(|part| part.trim_end_matches(".rs").ends_with("tests"));
    name.strip_prefix(module).is_some_and(|rest| rest == ".rs" || rest.starts_with('/')) && !is_test()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_in_a_module_that_decides_is_found_with_its_line() {
        let text = "//! No Instant.\nuse std::time::Duration;\nlet now = Instant::now(); // HashMap\n";
        let said = "3: names 'Instant', which a module that only decides must not";
        for name in ["client/src/core.rs", "client/src/core/deep/down.rs", "datanode/src/store/commit.rs"] {
            assert_eq!(wrongs_of(name, text), [said], "{name}");
        }
        assert_eq!(wrongs_of("metanode/src/table.rs", text).len(), 2, "not even a duration");
        for elsewhere in ["client/src/shell.rs", "client/src/core_like.rs", "client/src/core/tests/bench.rs"] {
            assert_eq!(wrongs_of(elsewhere, text), Vec::<String>::new(), "{elsewhere}");
        }
    }

    #[test]
    fn every_forbidden_word_is_found_in_every_room() {
        for room in ROOMS {
            for word in FORBIDDEN.iter().chain(room.also) {
                let text = format!("fn sabotaged() {{ {word}x }}");
                for module in room.modules {
                    assert!(!wrongs_of(&format!("{module}/a.rs"), &text).is_empty(), "{module}: {word}");
                }
            }
        }
        assert_eq!(wrongs_of("datanode/src/store.rs", "fn f(x: &'static str) {}"), Vec::<String>::new());
    }

    #[test]
    fn a_module_that_was_moved_is_missed() {
        let source = |module| Source { name: format!("{module}/a.rs"), text: String::new() };
        let all: Vec<Source> = ROOMS.iter().flat_map(|room| room.modules).map(source).collect();
        assert_eq!(missing(&all), Vec::<String>::new());
        assert_eq!(missing(&all[1..]), ["client/src/core: there is no such module to be kept pure"]);
    }
}
