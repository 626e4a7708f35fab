//! Files, folders and tests of the repository that the documents name in back-ticks, and pages that they lead to: all are there.
//!
//! A test is known by its attribute or by a room's list of claims. Only the form "`test` (`file.rs`)", or a list of tests before the
//! file, says where a test is: elsewhere a test in any file will do, and a test of few words is not seen as one.

use crate::code;
use crate::source::Source;
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Places of documents that speak of the tree as it is; `CHANGELOG.md` speaks of what it was, too.
const PLACES: [&str; 2] = ["README.md", "docs"];
/// Folder of the tree that no commit holds.
const LEFT_BY_BUILDS: &str = "target";
/// Endings of names that are files of the tree wherever they stand.
const ENDINGS: [&str; 4] = [".rs", ".md", ".sh", ".toml"];
/// Underscores in a name at least that makes it a test's.
const UNDERSCORES_MIN: usize = 4;

/// All documents, sorted by name.
pub(crate) fn all(root: &Path) -> Result<Vec<Source>> {
    let mut documents = Vec::new();
    let mut paths = PLACES.map(|place| root.join(place)).to_vec();
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?;
            for entry in entries {
                paths.push(entry?.path());
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            documents.push(Source::read(root, &path)?);
        }
    }
    documents.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(documents)
}

/// Names in a document of what is not there.
pub(crate) fn wrongs_of(document: &Source, repository: &Repository<'_>) -> Vec<String> {
    let Source { name, text } = document;
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut wrongs = Vec::new();
    let spans = spans(text);
    if spans.len().is_multiple_of(2) {
        wrongs.push("a back-tick has no other".to_owned());
    }
    wrongs.extend(
        repository.paths_of(text).into_iter().filter(|path| !repository.is_there(path)).map(|path| missing(&path)),
    );
    wrongs.extend(tests(&spans).into_iter().filter_map(|(test, file)| repository.missing_test(test, file)));
    let links = links(text).filter(|link| !repository.is_there(&joined(folder, link)));
    wrongs.extend(links.map(missing));
    wrongs.into_iter().map(|wrong| format!("{name}: {wrong}")).collect()
}

fn missing(path: &str) -> String {
    format!("there is no {path}")
}

/// The tree that documents speak of, as far as they can name its parts.
pub(crate) struct Repository<'a> {
    root: &'a Path,
    /// Folders that stand at the tree's root.
    folders: BTreeSet<String>,
    /// Tests, with the files that have one of the name.
    tests: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Repository<'a> {
    pub(crate) fn of(root: &'a Path, sources: &'a [Source]) -> Result<Self> {
        let mut folders = BTreeSet::new();
        for entry in std::fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))? {
            let entry = entry?;
            if entry.path().is_dir() && entry.file_name() != LEFT_BY_BUILDS {
                folders.insert(entry.file_name().to_string_lossy().into_owned());
            }
        }
        let mut tests: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for Source { name, text } in sources {
            code::tests(text).into_iter().for_each(|test| tests.entry(test).or_default().push(name));
        }
        Ok(Self { root, folders, tests })
    }

    /// Words in back-ticks that look like paths of this tree, from its root.
    pub(crate) fn paths_of(&self, text: &str) -> Vec<String> {
        words(&spans(text)).filter(|word| self.is_path(word)).map(str::to_owned).collect()
    }

    fn is_path(&self, word: &str) -> bool {
        let first = word.split_once('/').map(|(first, _)| first);
        let is_below = first.is_some_and(|first| self.folders.contains(first));
        let is_elsewhere = first.is_some_and(|first| matches!(first, "" | "." | LEFT_BY_BUILDS));
        is_below
            || !is_elsewhere && ENDINGS.iter().any(|ending| word.strip_suffix(ending).is_some_and(|stem| stem != "*"))
    }

    /// Complaint about a test that is not there, or not in the file that is said to have it.
    fn missing_test(&self, test: &str, file: Option<&str>) -> Option<String> {
        let Some(files) = self.tests.get(test) else { return Some(missing(&format!("test {test}"))) };
        let file = file.filter(|file| !files.contains(file))?;
        Some(missing(&format!("test {test} in {file}")))
    }

    fn is_there(&self, path: &str) -> bool {
        self.root.join(path).exists()
    }
}

/// A text's parts by its back-ticks, blocks of code left out: every second one stands between two.
fn spans(text: &str) -> Vec<String> {
    let mut is_code = false;
    let mut outside = String::new();
    for line in text.lines() {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        if !is_code && !is_fence {
            outside.extend([line, "\n"]);
        }
    }
    outside.split('`').map(str::to_owned).collect()
}

/// Words in back-ticks, without the signs around them.
fn words(spans: &[String]) -> impl Iterator<Item = &str> {
    spans.iter().skip(1).step_by(2).flat_map(|span| words_of(span))
}

fn words_of(span: &str) -> impl Iterator<Item = &str> {
    span.split_whitespace().map(|word| word.trim_matches(|c| matches!(c, ',' | ';' | ':' | '(' | ')' | '"' | '\'')))
}

fn is_test(word: &str) -> bool {
    word.matches('_').count() >= UNDERSCORES_MIN
        && word.starts_with(|c: char| c.is_ascii_lowercase())
        && word.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// Tests that a document names, each with the file if one stands in brackets behind it.
fn tests(spans: &[String]) -> Vec<(&str, Option<&str>)> {
    let mut tests: Vec<(&str, Option<&str>)> = Vec::new();
    // Tests before this one have their file, or none.
    let mut first_open = 0;
    for at in (1..spans.len()).step_by(2) {
        let (before, span) = (spans[at - 1].trim(), &spans[at]);
        if before == "(" && span.ends_with(".rs") {
            tests[first_open..].iter_mut().for_each(|(_, file)| *file = Some(span));
        }
        if before != "," {
            first_open = tests.len();
        }
        tests.extend(words_of(span).filter(|word| is_test(word)).map(|test| (test, None)));
    }
    tests
}

/// Pages of this tree that a document leads to.
fn links(text: &str) -> impl Iterator<Item = &str> {
    let links = text.split("](").skip(1).filter_map(|link| link.split_once(')'));
    let pages = links.map(|(link, _)| link.split('#').next().unwrap_or_default());
    pages.filter(|page| !page.is_empty() && !page.contains("://"))
}

fn joined(folder: &str, link: &str) -> String {
    Path::new(folder).join(link).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrongs(text: &str) -> Vec<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let code = "#[tokio::test(flavor = \"x\")]\n#[ignore]\nasync fn a_name_of_a_test() {}\n\
            #[test] fn a_second_test_of_it() {}\n// #[test] fn one_in_a_comment_only()\n\
            const A: &str = \"#[test] fn one_in_a_literal_only()\"; fn a_function_of_no_test() {}\n\
            claims![5 => a_claim_of_a_room, 6 => another_claim_of_a_room];";
        let sources = [Source { name: "xtask/src/documents.rs".to_owned(), text: code.to_owned() }];
        let repository = Repository::of(root, &sources).unwrap();
        wrongs_of(&Source { name: "docs/A.md".to_owned(), text: text.to_owned() }, &repository)
    }

    #[test]
    fn what_is_there_passes() {
        let text = "`xtask/src/documents.rs`, `xtask/` `cargo test\nxtask/src` [a](RULES.md#x) [b](../README.md)\n\
            `a_name_of_a_test` `a_second_test_of_it`, `a_name_of_a_test` (`xtask/src/documents.rs`) (`xtask/src/rules.rs`)\n\
            `a_claim_of_a_room` `another_claim_of_a_room` (see `xtask/src/rules.rs`)\n\
            `core/deep` `/etc/a.rs` `target/tests/a.rs` `*.rs` `cap_sys_admin` xtask/none.rs\n\
            ```\nxtask/none.rs `a_test_that_is_gone`\n```\n[c](https://a.b/c)";
        assert_eq!(wrongs(text), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_there_is_named() {
        let text = "`xtask/src/none.rs` `xtask/none/`, `(none.md)` `cat ci/none.sh`\n\
            `a_test_that_is_gone` `one_in_a_comment_only` [a](none.svg)";
        let missing = ["xtask/src/none.rs", "xtask/none/", "none.md", "ci/none.sh", "test a_test_that_is_gone"];
        let missing = missing.into_iter().chain(["test one_in_a_comment_only", "none.svg"]);
        assert_eq!(
            wrongs(text),
            missing.map(|missing| format!("docs/A.md: there is no {missing}")).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_test_is_behind_its_attribute_and_in_the_file_that_is_said_to_have_it() {
        let text = "`one_in_a_literal_only` `a_function_of_no_test`\n\
            `a_name_of_a_test`, `a_second_test_of_it`\n(`xtask/src/rules.rs`), `a_claim_of_a_room` (`xtask/src/rules.rs`)";
        let missing = [
            "one_in_a_literal_only",
            "a_function_of_no_test",
            "a_name_of_a_test in xtask/src/rules.rs",
            "a_second_test_of_it in xtask/src/rules.rs",
            "a_claim_of_a_room in xtask/src/rules.rs",
        ];
        assert_eq!(wrongs(text), missing.map(|missing| format!("docs/A.md: there is no test {missing}")));
    }

    #[test]
    fn a_back_tick_without_another_is_named() {
        assert_eq!(wrongs("`a` `b"), ["docs/A.md: a back-tick has no other"]);
    }
}
