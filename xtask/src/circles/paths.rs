//! Paths that a source's code names, tests left out.

use crate::code::{is_word, tokens};

/// A path as it is written, and the name that a `use` gives it in its module.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) words: Vec<String>,
    pub(super) import: Option<String>,
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
}
