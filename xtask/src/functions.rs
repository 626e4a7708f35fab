//! Lengths of functions: nine of ten are to be read at a glance.

/// Nine of ten functions have fewer lines than this.
const NINE_IN_TEN_BELOW: usize = 30;

/// Complaint about the `lengths` of all functions of the tree, if nine in ten are not short enough.
pub(crate) fn judge(mut lengths: Vec<usize>) -> Option<String> {
    lengths.sort_unstable();
    let nine_in_ten = *lengths.get(lengths.len() * 9 / 10)?;
    (nine_in_ten >= NINE_IN_TEN_BELOW).then(|| {
        format!(
            "one function in ten has {nine_in_ten} lines or more; nine in ten are to have less than {NINE_IN_TEN_BELOW}"
        )
    })
}

/// Lines of each function with a body, signature and braces included. Relies on the form that rustfmt gives: the body's closing brace
/// is the first one in the column in which the signature begins.
pub(crate) fn lengths_of(text: &str) -> Vec<usize> {
    let lines: Vec<&str> = text.lines().collect();
    (0..lines.len()).filter(|at| is_signature(lines[*at])).filter_map(|at| length(&lines[at..])).collect()
}

/// Whether a function begins in this line.
fn is_signature(line: &str) -> bool {
    let mut words = line.split_whitespace().skip_while(|word| {
        matches!(*word, "const" | "async" | "unsafe" | "extern" | "\"C\"" | "pub") || word.starts_with("pub(")
    });
    // `pub(in path)` is not in use.
    words.next() == Some("fn")
}

/// Length of the function that begins in the first line; `None` if it has no body.
fn length(lines: &[&str]) -> Option<usize> {
    let first = lines.first()?;
    if first.ends_with('}') {
        return Some(1);
    }
    let column = first.len() - first.trim_start().len();
    for (count, line) in (1..).zip(lines) {
        match line.get(column..) {
            Some("}") if line[..column].trim().is_empty() => return Some(count),
            Some(rest) if rest.ends_with(';') && (count == 1 || rest.starts_with(')')) => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_end_with_the_brace_of_their_column() {
        let text = "\
fn one() {}
pub(crate) const fn short() -> u32 {
    7
}
impl A {
    async fn inner(&self) {
        if x {
        }
    }
}
fn of_many(
    arguments: u32,
) -> u32 {
    arguments
}
";
        assert_eq!(lengths_of(text), [1, 3, 4, 5]);
    }

    #[test]
    fn what_has_no_body_is_no_function() {
        assert_eq!(
            lengths_of("trait T {\n    fn one(&self);\n    fn two(\n        a: u32,\n    ) -> u32;\n}\n"),
            [0; 0]
        );
        assert_eq!(lengths_of("// fn in words\nlet fn_name = 1;\n"), [0; 0]);
    }

    #[test]
    fn nine_in_ten_are_to_be_short() {
        let lengths = |long: usize| [vec![5; 100 - long], vec![30; long]].concat();
        assert_eq!(judge(lengths(9)), None);
        let said = judge(lengths(10)).unwrap();
        assert!(said.starts_with("one function in ten has 30 lines or more"), "{said}");
        assert_eq!(judge(Vec::new()), None);
    }
}
