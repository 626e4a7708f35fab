//! Rust code as text: its words and signs, and what of it only tests have. Relies on the form that rustfmt gives.

use std::collections::BTreeSet;

/// A source without the items that only tests have, and the modules among these.
pub(crate) fn without_tests(text: &str) -> (String, BTreeSet<String>) {
    let (mut code, mut tests) = (String::new(), BTreeSet::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            code.extend([line, "\n"]);
            continue;
        }
        let Some(first) = lines.by_ref().find(|line| !line.trim_start().starts_with("#[")) else { break };
        tests.extend(first.split("mod ").nth(1).and_then(|name| name.strip_suffix(';')).map(str::to_owned));
        if !first.ends_with([';', ',', '}']) {
            let column = first.len() - first.trim_start().len();
            // The item's last line begins in the column of its first one.
            lines.by_ref().find(|line| {
                let rest = line.get(column..).filter(|_| line[..column].trim().is_empty());
                rest.is_some_and(|rest| rest.starts_with('}') || rest.starts_with(')') && rest.ends_with(';'))
            });
        }
    }
    (code, tests)
}

/// Names of tests in a source: of functions behind a test's attribute, and in a room's list of claims.
pub(crate) fn tests(text: &str) -> Vec<&str> {
    let tokens = tokens(text);
    let mut tests = Vec::new();
    for at in 0..tokens.len() {
        match &tokens[at..] {
            ["#", "[", "test", "]", ..] | ["#", "[", "tokio", "::", "test", "]" | "(", ..] => {
                tests.extend(tokens[at..].windows(2).find(|pair| pair[0] == "fn").map(|pair| pair[1]));
            }
            ["claims", "!", "[", list @ ..] => {
                let list = list.split(|token| *token == "]").next().unwrap_or_default();
                tests.extend(list.windows(3).filter(|three| three[..2] == ["=", ">"]).map(|three| three[2]));
            }
            _ => {}
        }
    }
    tests.retain(|test| is_word(test));
    tests
}

/// Words, `::` and single signs of a code, without its comments and literals.
pub(crate) fn tokens(code: &str) -> Vec<&str> {
    let mut tokens = Vec::new();
    let mut rest = code;
    while let Some(first) = rest.chars().next() {
        let skipped = skipped(rest);
        let length = if skipped > 0 {
            skipped
        } else if rest.starts_with("::") {
            2
        } else if is_word(rest) {
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        let (token, behind) = rest.split_at(length);
        if skipped == 0 && !first.is_whitespace() {
            tokens.push(token);
        }
        rest = behind;
    }
    tokens
}

pub(crate) fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Length of the comment or literal that begins here; 0 if none does.
fn skipped(code: &str) -> usize {
    let through = |from: usize, end: &str| code[from..].find(end).map_or(code.len(), |at| from + at + end.len());
    let raw = code.strip_prefix('b').unwrap_or(code).strip_prefix('r').map(|raw| raw.trim_start_matches('#'));
    match code.as_bytes() {
        [b'/', b'/', ..] => through(2, "\n"),
        [b'/', b'*', ..] => through(2, "*/"),
        [b'"', ..] => quoted(code, '"'),
        [b'\'', b'\\', ..] => quoted(code, '\''),
        // A quote that is not closed behind one sign is a lifetime's.
        [b'\'', ..] => {
            let sign = code[1..].chars().next().map_or(0, char::len_utf8);
            if code[1 + sign..].starts_with('\'') { sign + 2 } else { 0 }
        }
        [b'b' | b'r', ..] if raw.is_some_and(|raw| raw.starts_with('"')) => {
            let opening = code.find('"').unwrap_or_default() + 1;
            let hashes = code[..opening].matches('#').count();
            through(opening, &format!("\"{}", "#".repeat(hashes)))
        }
        _ => 0,
    }
}

/// Length of a literal up to the quote that no backslash stands before.
fn quoted(code: &str, quote: char) -> usize {
    let mut is_escaped = false;
    let end = code.char_indices().skip(1).find(|(_, c)| {
        let is_end = *c == quote && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        is_end
    });
    end.map_or(code.len(), |(at, _)| at + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_tests_have_is_left_out() {
        let text = "\
#[cfg(test)]
mod bench;
#[cfg(test)]
#[rustfmt::skip]
use crate::{
    a,
};
impl A {
    #[cfg(test)]
    fn inner(
        &self,
    ) {
        crate::b()
    }
    fn kept() {}
}
#[cfg(test)]
pub(crate) mod tests {
    fn x() {}
}
fn last() {}
";
        let (code, tests) = without_tests(text);
        assert_eq!(code, "impl A {\n    fn kept() {}\n}\nfn last() {}\n");
        assert_eq!(tests.into_iter().collect::<Vec<_>>(), ["bench"]);
    }
}
