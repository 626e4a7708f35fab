//! Checks that no tool of others makes: every rule and decision that the code cites is one of `docs/RULES.md`, every
//! decision record that is named exists, no file is too long to be read in one go, nine in ten functions are short, what
//! only decides names nothing that does, and modules use each other one way.

use crate::source::{self, Source};
use crate::{circles, functions, purity};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::Path;

/// Lines of a file at most.
const FILE_LINES_MAX: usize = 500;
const RULES: &str = "docs/RULES.md";
const RECORDS: &str = "docs/decisions/";

/// Looks through the tree at `root`; prints what is wrong. Whether nothing is.
pub(crate) fn check(root: &Path) -> Result<bool> {
    let rules = std::fs::read_to_string(root.join(RULES)).with_context(|| format!("cannot read {RULES}"))?;
    let known = definitions(&rules);
    let sources = source::all(root)?;
    let (mut wrongs, mut lengths) = (Vec::new(), Vec::new());
    for Source { name, text } in &sources {
        let found = wrongs_of(text, &known, |record| exists(root, record));
        wrongs.extend(found.into_iter().chain(purity::wrongs_of(name, text)).map(|wrong| format!("{name}:{wrong}")));
        lengths.extend(functions::lengths_of(text));
    }
    wrongs.extend(purity::missing(&sources));
    wrongs.extend(circles::wrongs_of(&sources));
    wrongs.extend(functions::judge(lengths));
    wrongs.iter().for_each(|wrong| println!("{wrong}"));
    Ok(wrongs.is_empty())
}

/// Whether a decision record with this number, as it is cited, exists.
fn exists(root: &Path, number: &str) -> bool {
    let records = std::fs::read_dir(root.join(RECORDS)).into_iter().flatten().flatten();
    records.into_iter().any(|record| record.file_name().to_string_lossy().starts_with(&format!("{number}-")))
}

fn wrongs_of(text: &str, known: &BTreeSet<String>, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let mut wrongs = Vec::new();
    let count = text.lines().count();
    if count > FILE_LINES_MAX {
        wrongs.push(format!(" {count} lines, of {FILE_LINES_MAX} at most"));
    }
    for (number, line) in (1..).zip(text.lines()) {
        let Some((_, comment)) = line.split_once("//") else { continue };
        for citation in citations(comment).filter(|citation| !known.contains(citation)) {
            wrongs.push(format!("{number}: {citation} is not in {RULES}"));
        }
        for (_, record) in comment.match_indices(RECORDS).map(|(at, _)| comment.split_at(at + RECORDS.len())) {
            let digits: String = record.chars().take_while(char::is_ascii_digit).collect();
            if !exists(&digits) {
                wrongs.push(format!("{number}: there is no {RECORDS}{digits}"));
            }
        }
    }
    wrongs
}

/// Words that are R or D and a number.
fn citations(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| is_citation(word)).map(str::to_owned)
}

fn is_citation(word: &str) -> bool {
    let digits = word.strip_prefix(['R', 'D']);
    digits.is_some_and(|digits| !digits.is_empty() && digits.len() <= 2 && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// Rules that their page defines: the first cell of a row, or what stands in bold at the start of an item.
fn definitions(rules: &str) -> BTreeSet<String> {
    let heads = rules.lines().filter_map(|line| {
        let row = line.strip_prefix("| ").and_then(|row| row.split_once(" |"));
        let item = line.strip_prefix("- **").and_then(|item| item.split_once("**"));
        row.or(item).map(|(head, _)| head)
    });
    heads.flat_map(citations).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_items_define_and_nothing_else_does() {
        let rules = "| D1 | see D9 | R7 |\n- **R17, R18** not built\n- text R3\nR4";
        assert_eq!(definitions(rules).into_iter().collect::<Vec<_>>(), ["D1", "R17", "R18"]);
    }

    #[test]
    fn a_citation_of_nothing_and_a_missing_record_are_named_with_their_line() {
        let known = BTreeSet::from(["R1".to_owned()]);
        let text = format!("// R1, R2\nlet R9 = 1; // {RECORDS}0007-x.md and {RECORDS}0099");
        let wrongs = wrongs_of(&text, &known, |record| record == "0007");
        assert_eq!(wrongs, ["1: R2 is not in docs/RULES.md", "2: there is no docs/decisions/0099"]);
    }

    #[test]
    fn a_long_file_is_named() {
        assert_eq!(wrongs_of(&"\n".repeat(FILE_LINES_MAX), &BTreeSet::new(), |_| true), Vec::<String>::new());
        assert_eq!(wrongs_of(&"\n".repeat(FILE_LINES_MAX + 1), &BTreeSet::new(), |_| true).len(), 1);
    }
}
