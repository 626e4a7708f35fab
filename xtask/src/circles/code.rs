//! Paths that a source's code names, tests left out. Relies on the form that rustfmt gives.

use std::collections::BTreeSet;

/// A path as it is written, and the name that a `use` gives it in its module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) words: Vec<String>,
    pub(super) import: Option<String>,
}

/// A source without the items that only tests have, and the modules among these.
pub(super) fn without_tests(text: &str) -> (String, BTreeSet<String>) {
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

/// All paths of a code that begin with `crate`, `super` or `self`, and everything that it imports.
pub(super) fn paths(code: &str) -> Vec<Named> {
    let tokens = tokens(code);
    let mut paths = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let is_import = *token == "use";
        let is_head = matches!(*token, "crate" | "super" | "self") && tokens.get(at + 1) == Some(&"::");
        at = match (is_import, is_head) {
            (true, _) => branches(&tokens, at + 1, Vec::new(), true, &mut paths),
            (false, true) => branches(&tokens, at, Vec::new(), false, &mut paths),
            (false, false) => at + 1,
        };
    }
    paths
}

/// Reads the paths that go on from `words` at a token, all of them if there is a list; the place behind.
fn branches(tokens: &[&str], mut at: usize, mut words: Vec<String>, import: bool, paths: &mut Vec<Named>) -> usize {
    loop {
        match tokens.get(at) {
            Some(&"{") if import => return list(tokens, at + 1, &words, paths),
            Some(word) if is_word(word) || *word == "*" => words.push((*word).to_owned()),
            _ => break,
        }
        at += 1;
        if tokens.get(at) != Some(&"::") {
            break;
        }
        at += 1;
    }
    if words.len() > 1 && words.last().is_some_and(|word| word == "self") {
        words.pop();
    }
    let mut name = words.last().cloned();
    if import && tokens.get(at) == Some(&"as") {
        name = tokens.get(at + 1).map(|name| (*name).to_owned());
        at += 2;
    }
    paths.push(Named { words, import: name.filter(|_| import) });
    at
}

/// Reads the list of an import from behind its opening brace.
fn list(tokens: &[&str], mut at: usize, words: &[String], paths: &mut Vec<Named>) -> usize {
    loop {
        match tokens.get(at) {
            Some(&",") => at += 1,
            Some(token) if is_word(token) || matches!(*token, "{" | "*") => {
                at = branches(tokens, at, words.to_vec(), true, paths);
            }
            _ => return at + 1,
        }
    }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphanumeric() || c == '_')
}

/// Words, `::` and single signs of a code, without its comments and literals.
fn tokens(code: &str) -> Vec<&str> {
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

    fn shown(code: &str) -> Vec<String> {
        let show = |named: &Named| match &named.import {
            Some(name) => format!("{} = {name}", named.words.join(".")),
            None => named.words.join("."),
        };
        paths(code).iter().map(show).collect()
    }

    #[test]
    fn lists_of_imports_are_read_to_their_leaves() {
        let code =
            "pub(crate) use crate::{a, b::{self, C as D}, e::*};\nuse f::g;\nfn f() { super::h::<u8>(self::i::J) }";
        let paths = ["crate.a = a", "crate.b = b", "crate.b.C = D", "crate.e.* = *", "f.g = g", "super.h", "self.i.J"];
        assert_eq!(shown(code), paths);
    }

    #[test]
    fn comments_and_literals_name_nothing() {
        let code = "// crate::a\n/* crate::b */ f(\"\\\" crate::c\", r#\"\" crate::d\"#, b\"crate::e\", '\"', '\\'', &'a x);\nself.y; crate::z";
        assert_eq!(shown(code), ["crate.z"]);
    }

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
