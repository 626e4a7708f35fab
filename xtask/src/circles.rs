//! Modules that stand beside one another use each other one way: a reader of one needs only what it stands on. This holds in every
//! folder of every crate's library or program. A module's use of what its own folder's file has, by `super`, is Rust's usual way and
//! does not count; neither does a folder's use of its modules. So that the uses can be seen, tests alone import all of a module.
//!
//! Two things are not seen. A module written in braces in its file counts as the file: a `super` or `self` in it is taken for the
//! file's own. And a program that names its library by the crate's name uses another crate, as far as this can tell.

mod paths;
mod tree;

use crate::source::Source;
use std::collections::{BTreeMap, BTreeSet};
use tree::{Tree, Uses};

/// Circles of modules, each with the uses that make it, and imports that hide uses.
pub(crate) fn wrongs_of(sources: &[Source]) -> Vec<String> {
    let mut wrongs = Vec::new();
    for (room, tree) in trees(sources) {
        wrongs.extend(tree.globs().map(|file| format!("{room}/src/{file}: imports all of a module of its crate")));
        for (folder, uses) in tree.uses() {
            let folder = [&[room.to_owned(), "src".to_owned()], &folder[..]].concat().join("/");
            let circles = circles_of(&uses).into_iter().map(|circle| show(&uses, &circle));
            wrongs.extend(circles.map(|shown| format!("{folder}: modules use each other in a circle: {shown}")));
        }
    }
    wrongs
}

/// The modules of every crate, by its folder.
fn trees(sources: &[Source]) -> BTreeMap<&str, Tree> {
    let mut crates: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for source in sources {
        if let Some((room, file)) = source.name.split_once("/src/") {
            crates.entry(room).or_default().push((file, &source.text));
        }
    }
    crates.into_iter().map(|(room, files)| (room, Tree::of(files.into_iter()))).collect()
}

/// Modules that use one another, over others or at once, as sets.
fn circles_of(uses: &Uses) -> BTreeSet<BTreeSet<String>> {
    let reach: BTreeMap<&String, BTreeSet<&String>> = uses.keys().map(|module| (module, reach(uses, module))).collect();
    let reaches = |from: &String, to: &String| reach.get(from).is_some_and(|reach| reach.contains(to));
    let back = |module: &String| uses.keys().filter(|to| reaches(module, to) && reaches(to, module)).cloned().collect();
    uses.keys().map(back).filter(|circle: &BTreeSet<String>| !circle.is_empty()).collect()
}

/// All that a module uses, and what that uses.
fn reach<'a>(uses: &'a Uses, module: &String) -> BTreeSet<&'a String> {
    let mut reach = BTreeSet::new();
    let mut next: Vec<&String> = uses.get(module).into_iter().flat_map(BTreeMap::keys).collect();
    while let Some(module) = next.pop() {
        if reach.insert(module) {
            next.extend(uses.get(module).into_iter().flat_map(BTreeMap::keys));
        }
    }
    reach
}

/// The uses that make a circle, each with a file that shows it.
fn show(uses: &Uses, circle: &BTreeSet<String>) -> String {
    let within = circle.iter().flat_map(|user| uses[user].iter().map(move |(used, file)| (user, used, file)));
    let within = within.filter(|(_, used, _)| circle.contains(*used));
    within.map(|(user, used, file)| format!("{user} uses {used} (src/{file})")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(pairs: &[(&str, &[&str])]) -> Uses {
        let used = |used: &[&str]| used.iter().map(|used| ((*used).to_owned(), String::new())).collect();
        pairs.iter().map(|(user, list)| ((*user).to_owned(), used(list))).collect()
    }

    fn source(name: &str, text: &str) -> Source {
        Source { name: name.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_circle_would_be_found() {
        assert_eq!(circles_of(&uses(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])), BTreeSet::new());
        let circle =
            uses(&[("a", &["b"]), ("b", &["a", "c"]), ("c", &["d"]), ("d", &["e"]), ("e", &["c"]), ("f", &["a"])]);
        let circles: Vec<String> =
            circles_of(&circle).iter().map(|circle| circle.iter().map(String::as_str).collect()).collect();
        assert_eq!(circles, ["ab", "cde"]);
    }

    #[test]
    fn a_circle_of_the_tree_is_named_with_its_uses() {
        let sources = [
            source("x/src/lib.rs", "mod deep;"),
            source("x/src/deep/a.rs", "use super::b;"),
            source("x/src/deep/b.rs", "use crate::deep::{a, Own};"),
            source("x/src/deep.rs", "use self::a::A;"),
            source("y/src/b.rs", "use crate::a;"),
            source("y/tests/a.rs", "use crate::b;"),
        ];
        let said = "x/src/deep: modules use each other in a circle: a uses b (src/deep/a.rs), b uses a (src/deep/b.rs)";
        assert_eq!(wrongs_of(&sources), [said]);
    }

    #[test]
    fn the_uses_of_this_repository_are_seen() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let sources = crate::source::all(root).unwrap();
        let trees = trees(&sources);
        let consensus = &trees["consensus"].uses()[&Vec::new()];
        assert!(consensus.len() > 15 && trees.len() > 15, "{consensus:?}");
        let sees = |user: &str, used: &str| consensus[user].contains_key(used);
        assert!(sees("driver", "group") && sees("queue", "status"), "{consensus:?}");
        assert!(trees["datanode"].uses()[&vec!["store".to_owned()]]["commit"].contains_key("index"));
    }

    #[test]
    fn an_import_of_everything_is_named_outside_of_tests() {
        let tests = "#[cfg(test)]\nmod tests {\n    use super::*;\n}\n";
        let sources = [source("x/src/a.rs", tests), source("x/src/b.rs", "use super::*;\nuse std::io::*;\n")];
        assert_eq!(wrongs_of(&sources), ["x/src/b.rs: imports all of a module of its crate"]);
    }
}
