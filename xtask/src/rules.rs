//! The page of decisions and rules, and whether it and the code agree: each stands there once, and names files that cite it.

use crate::code;
use crate::source::Source;
use std::collections::{BTreeMap, BTreeSet};

/// Their page.
pub(crate) const PAGE: &str = "docs/RULES.md";
/// Number of rules of each letter. Numbers are not given again.
const COUNTS: [(char, usize); 2] = [('D', 13), ('R', 31)];
/// Last words of a rule that no code keeps yet. What stands behind them would be a promise that something keeps.
const UNBUILT: &str = "ot built yet.";

/// A row of the decisions or an item of the rules: its numbers, and its lines.
struct Entry<'a> {
    heads: Vec<String>,
    lines: Vec<&'a str>,
}

impl Entry<'_> {
    fn text(&self) -> String {
        self.lines.join("\n")
    }

    /// Whether the entry says nothing behind the words that no code keeps it yet.
    fn is_unbuilt(&self) -> bool {
        self.text().trim_end_matches([' ', '|']).ends_with(UNBUILT)
    }
}

/// Every rule and decision of the page.
pub(crate) fn known(page: &str) -> BTreeSet<String> {
    entries(page).into_iter().flat_map(|entry| entry.heads).collect()
}

/// Words of a text that are R or D and a number.
pub(crate) fn citations(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| is_citation(word)).map(str::to_owned)
}

/// Rules that do not stand on the page once, that nothing is said to keep, and that a file does not cite which is said to
/// keep them. `paths_of` finds what a text names, and `others` are files beside the sources.
pub(crate) fn wrongs_of(
    page: &str,
    sources: &[Source],
    others: &[Source],
    paths_of: impl Fn(&str) -> Vec<String>,
) -> Vec<String> {
    let entries = entries(page);
    let mut wrongs = uncounted(&entries);
    for entry in &entries {
        let (text, heads) = (entry.text(), entry.heads.join(", "));
        let paths = paths_of(&text);
        if paths.is_empty() && !entry.is_unbuilt() {
            wrongs.push(format!("{heads}: names nothing that keeps it"));
        }
        for path in paths {
            let files = sources.iter().chain(others).filter(|source| is_in(&source.name, &path));
            let files = files.filter(|source| is_of_tests(&source.name) == is_of_tests(&path));
            let cited: BTreeSet<String> = files.flat_map(cited).collect();
            let missing = entry.heads.iter().filter(|head| !cited.contains(*head));
            wrongs.extend(missing.map(|head| format!("{head}: is not cited in {path}, which is said to keep it")));
        }
    }
    wrongs.into_iter().map(|wrong| format!("{PAGE}: {wrong}")).collect()
}

/// Rules that have no entry, or more than one, or that there are not to be.
fn uncounted(entries: &[Entry<'_>]) -> Vec<String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for head in entries.iter().flat_map(|entry| &entry.heads) {
        *counts.entry(head.clone()).or_default() += 1;
    }
    let wanted = COUNTS.iter().flat_map(|(letter, count)| (1..=*count).map(move |number| format!("{letter}{number}")));
    let wanted: BTreeSet<String> = wanted.collect();
    let all: BTreeSet<&String> = wanted.iter().chain(counts.keys()).collect();
    let wrong = all.into_iter().filter_map(|head| {
        let (count, expected) = (counts.get(head).copied().unwrap_or_default(), usize::from(wanted.contains(head)));
        (count != expected).then(|| format!("{head}: has {count} entries, and is to have {expected}"))
    });
    wrong.collect()
}

/// Entries of the page: what begins with a row's first cell, or with what stands in bold at the start of an item.
fn entries(page: &str) -> Vec<Entry<'_>> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for line in page.lines() {
        let row = line.strip_prefix("| ").and_then(|row| row.split_once(" |"));
        let item = line.strip_prefix("- **").and_then(|item| item.split_once("**"));
        match row.or(item) {
            Some((head, _)) => entries.push(Entry { heads: citations(head).collect(), lines: vec![line] }),
            None if line.starts_with("  ") => entries.last_mut().into_iter().for_each(|entry| entry.lines.push(line)),
            None => entries.push(Entry { heads: Vec::new(), lines: Vec::new() }),
        }
    }
    entries.retain(|entry| !entry.heads.is_empty());
    entries
}

/// Rules that a file cites: in a comment outside of its tests, and a file of tests in any comment and in the names of tests.
fn cited(source: &Source) -> Vec<String> {
    let comment = |line: &str| -> Vec<String> {
        let comment = line.split_once("//").or_else(|| line.split_once("# ")).map_or("", |(_, comment)| comment);
        citations(comment).collect()
    };
    if !is_of_tests(&source.name) {
        return code::without_tests(&source.text).0.lines().flat_map(comment).collect();
    }
    let tests =
        code::tests(&source.text).into_iter().map(|test| test.split('_').next().unwrap_or_default().to_uppercase());
    source.text.lines().flat_map(comment).chain(tests.filter(|number| is_citation(number))).collect()
}

/// Whether a file or folder has nothing but tests.
fn is_of_tests(path: &str) -> bool {
    path.trim_end_matches(".rs").split('/').any(|part| part == "tests" || part.ends_with("_tests"))
}

/// Whether a file is what a path names: the file, one in the folder, or the one beside the folder that is its module.
fn is_in(name: &str, path: &str) -> bool {
    let path = path.trim_end_matches('/');
    name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || rest == ".rs")
}

fn is_citation(word: &str) -> bool {
    let digits = word.strip_prefix(['R', 'D']);
    digits.is_some_and(|digits| !digits.is_empty() && digits.len() <= 2 && digits.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The page with all that is to be there but D1, D2, R1 and R2, and these lines.
    fn page(lines: &str) -> String {
        let rest: String = COUNTS
            .iter()
            .flat_map(|(letter, count)| {
                (3..=*count).map(move |number| format!("- **{letter}{number}** Not built yet.\n"))
            })
            .collect();
        format!("{rest}\n{lines}")
    }

    fn wrongs(lines: &str) -> Vec<String> {
        let source = |(name, text): (&str, &str)| Source { name: name.to_owned(), text: text.to_owned() };
        let b =
            format!("/// R1, R2\n{}", "#[cfg(test)]\nmod tests {\n    // D2\n    #[test]\n    fn d1_holds() {}\n}\n");
        let sources =
            [("a/one.rs", "//! One (D1).\nlet R9 = 1;"), ("a/tests.rs", "#[test]\nfn r1_holds() {}"), ("b.rs", &b)];
        let others = [("Cargo.toml", "# What for (D2).")];
        let paths_of = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        let wrongs = wrongs_of(&page(lines), &sources.map(source), &others.map(source), paths_of);
        wrongs.iter().map(|wrong| wrong.trim_start_matches("docs/RULES.md: ").to_owned()).collect()
    }

    #[test]
    fn rows_and_items_define_and_nothing_else_does() {
        let page = "| D1 | see D9 | R7 |\n- **R17, R18** not built\n- text R3\nR4";
        assert_eq!(known(page).into_iter().collect::<Vec<_>>(), ["D1", "R17", "R18"]);
    }

    #[test]
    fn a_page_that_agrees_with_its_files_passes() {
        let lines =
            "| D1 | x | `a/` |\n| D2 | x | `Cargo.toml` |\n- **R1** x\n  y (`a/tests.rs`, `b`)\n- **R2** (`b.rs`)\n";
        assert_eq!(wrongs(lines), Vec::<String>::new());
    }

    #[test]
    fn a_rule_that_is_missing_doubled_or_too_many_is_named() {
        let lines = "| D1 | x | `a/` |\n- **R1** (`b.rs`)\n- **R1, R2** (`b.rs`)\n- **R32** Not built yet.\n";
        let said = ["D2: has 0 entries, and is to have 1", "R1: has 2 entries, and is to have 1"];
        assert_eq!(wrongs(lines)[..2], said);
        assert_eq!(wrongs(lines)[2..], ["R32: has 1 entries, and is to have 0"]);
    }

    #[test]
    fn a_rule_that_says_what_holds_until_it_is_built_is_to_name_what_keeps_that() {
        let lines = "| D1 | Not built yet: x | |\n| D2 | x. Not built yet. | |\n- **R1** Not built yet.\n  x\n- **R2** x\n  is not built yet.\n";
        assert_eq!(wrongs(lines), ["D1: names nothing that keeps it", "R1: names nothing that keeps it"]);
    }

    #[test]
    fn a_test_of_a_folder_does_not_cite_for_its_code() {
        let lines = "| D1 | x | `a` |\n| D2 | x | `b.rs` |\n- **R1** (`a`)\n- **R2** (`b.rs`)\n";
        let said =
            ["D2: is not cited in b.rs, which is said to keep it", "R1: is not cited in a, which is said to keep it"];
        assert_eq!(wrongs(lines), said);
    }

    #[test]
    fn a_rule_that_nothing_keeps_or_its_file_does_not_cite_is_named() {
        let lines = "| D1 | x | `a/tests.rs`, `b.rs` |\n| D2 | x | |\n- **R1** x\n\n  (`b.rs`)\n- **R2** (`a`)\n";
        let said = [
            "D1: is not cited in a/tests.rs, which is said to keep it",
            "D1: is not cited in b.rs, which is said to keep it",
            "D2: names nothing that keeps it",
            "R1: names nothing that keeps it",
            "R2: is not cited in a, which is said to keep it",
        ];
        assert_eq!(wrongs(lines), said);
    }
}
