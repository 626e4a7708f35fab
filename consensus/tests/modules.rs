//! That the modules of this crate use each other one way: whoever reads one needs only what it stands on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Modules by name, with the modules that each uses.
type Uses = BTreeMap<String, BTreeSet<String>>;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// All files of a module, but for its tests.
fn files_of(module: &str) -> Vec<PathBuf> {
    let mut files = vec![source().join(module).with_extension("rs")];
    let mut folders = vec![source().join(module)];
    while let Some(entries) = folders.pop().map(std::fs::read_dir) {
        for path in entries.into_iter().flatten().map(|entry| entry.expect("the sources can be read").path()) {
            match path.file_stem().is_some_and(|stem| stem == "tests") {
                true => {}
                false if path.is_dir() => folders.push(path),
                false => files.push(path),
            }
        }
    }
    files
}

/// A file without its comments, and without the tests at its end.
fn code_of(file: &Path) -> String {
    let text = std::fs::read_to_string(file).expect("the sources can be read");
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let lines = lines.take_while(|line| !line.starts_with("mod tests {"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The first words of all paths that begin at the crate's root.
fn roots(code: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut roots = BTreeSet::new();
    for path in code.split("crate::").skip(1) {
        match path.strip_prefix('{') {
            None => drop(roots.insert(word(path))),
            Some(list) => roots.extend(items(list).iter().map(|item| word(item.trim_start()))),
        }
    }
    roots.remove("");
    roots
}

/// What stands between the commas of a list, up to its closing brace.
fn items(list: &str) -> Vec<String> {
    let (mut items, mut depth) = (vec![String::new()], 0);
    for c in list.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => items.push(String::new()),
            _ if depth == 0 => items.last_mut().expect("never empty").push(c),
            _ => {}
        }
    }
    items
}

fn uses() -> Uses {
    let library = code_of(&source().join("lib.rs"));
    let modules: Vec<&str> = library
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    // What the root exports is named by its module here.
    let exports: BTreeMap<String, &str> = library
        .split("pub use ")
        .skip(1)
        .filter_map(|export| export.split(';').next()?.split_once("::"))
        .flat_map(|(module, list)| items(list.trim_start_matches('{')).into_iter().map(move |name| (name, module)))
        .map(|(name, module)| (name.trim().to_owned(), module))
        .collect();
    let used = |module: &str| -> BTreeSet<String> {
        let words = files_of(module).iter().flat_map(|file| roots(&code_of(file))).collect::<BTreeSet<_>>();
        let named = words.into_iter().map(|word| exports.get(&word).map_or(word, |module| (*module).to_owned()));
        named.filter(|to| to != module).collect()
    };
    let uses: Uses = modules.iter().map(|module| ((*module).to_owned(), used(module))).collect();
    for to in uses.values().flatten() {
        assert!(uses.contains_key(to), "{to} is no module of this crate");
    }
    uses
}

/// Takes away modules that use none of those left, until that is none or all.
fn circles(mut uses: Uses) -> Uses {
    loop {
        let done: Vec<String> = uses.iter().filter(|(_, to)| to.is_empty()).map(|(module, _)| module.clone()).collect();
        if done.is_empty() {
            return uses;
        }
        uses.retain(|_, to| !to.is_empty());
        uses.values_mut().for_each(|to| to.retain(|module| !done.contains(module)));
    }
}

#[test]
fn no_module_uses_one_that_uses_it() {
    let uses = uses();
    assert!(uses.len() > 20 && uses["driver"].contains("group") && uses["queue"].contains("status"), "{uses:?}");
    assert_eq!(circles(uses), Uses::new());
}

#[test]
fn a_circle_would_be_found() {
    let uses = |pairs: &[(&str, &[&str])]| -> Uses {
        pairs.iter().map(|(from, to)| ((*from).to_owned(), to.iter().map(|to| (*to).to_owned()).collect())).collect()
    };
    assert_eq!(circles(uses(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])), Uses::new());
    let circle = [("a", &["b"][..]), ("b", &["a", "c"][..]), ("c", &[][..])];
    assert_eq!(circles(uses(&circle)).into_keys().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(roots("use crate::{a, b::{self, C}, d};\ncrate::e::f()").into_iter().collect::<String>(), "abde");
}
