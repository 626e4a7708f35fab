//! Checks that no tool of others makes: every rule and decision that the code cites is one of `docs/RULES.md`, and is cited
//! where that page says that it is kept; every decision record that is named exists, and whatever the documents name; no
//! file is too long to be read in one go, nine in ten functions are short, what only decides names nothing that does, and
//! modules use each other one way.

use crate::documents::{self, Repository};
use crate::rules::{self, PAGE, citations};
use crate::source::{self, Source};
use crate::{circles, functions, purity};
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;

/// Lines of a file at most.
const FILE_LINES_MAX: usize = 500;
const RECORDS: &str = "docs/decisions/";

/// Looks through the tree at `root`; prints what is wrong. Whether nothing is.
pub(crate) fn check(root: &Path) -> Result<bool> {
    let page = Source::read(root, &root.join(PAGE))?;
    let known = rules::known(&page.text);
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
    wrongs.extend(of_documents(root, &page, &sources)?);
    wrongs.iter().for_each(|wrong| println!("{wrong}"));
    Ok(wrongs.is_empty())
}

/// Sentences that are wrong in the documents, and in their page of rules.
fn of_documents(root: &Path, page: &Source, sources: &[Source]) -> Result<Vec<String>> {
    let repository = Repository::of(root, sources)?;
    let documents = documents::all(root)?;
    let mut wrongs: Vec<String> =
        documents.iter().flat_map(|document| documents::wrongs_of(document, &repository)).collect();
    let named = repository.paths_of(&page.text).into_iter().map(|path| root.join(path));
    let others = named.filter(|path| path.is_file() && path.extension().is_none_or(|extension| extension != "rs"));
    let others = others.map(|path| Source::read(root, &path)).collect::<Result<Vec<_>>>()?;
    wrongs.extend(rules::wrongs_of(&page.text, sources, &others, |text| repository.paths_of(text)));
    Ok(wrongs)
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
            wrongs.push(format!("{number}: {citation} is not in {PAGE}"));
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

#[cfg(test)]
mod tests {
    use super::*;

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
