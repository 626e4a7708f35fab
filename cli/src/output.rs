//! Text for people and from them: sizes, tables.

use std::fmt::Write as _;

const UNITS: [(char, u32); 6] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50), ('E', 60)];

/// A text that is no size.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no size: a number with K, M, G, T or P, as 10G")]
pub(crate) struct NoSize(String);

/// Reads a size as 4096, 500M, 10G, 10GiB; units are powers of 1024.
pub(crate) fn parse_size(text: &str) -> Result<u64, NoSize> {
    let problem = || NoSize(text.to_owned());
    let upper = text.to_ascii_uppercase();
    let body = upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper);
    let unit = UNITS.iter().find_map(|(letter, shift)| body.strip_suffix(*letter).map(|digits| (digits, *shift)));
    let (digits, shift) = unit.unwrap_or((body, 0));
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(problem());
    }
    let number: u64 = digits.parse().map_err(|_| problem())?;
    number.checked_mul(1 << shift).filter(|size| *size > 0).ok_or_else(problem)
}

/// A size for people, with one digit behind the point below ten.
pub(crate) fn show_size(bytes: u64) -> String {
    let Some((letter, shift)) = UNITS.iter().rev().find(|(_, shift)| bytes >= 1 << shift) else {
        return format!("{bytes} B");
    };
    let whole = bytes >> shift;
    if whole >= 10 {
        return format!("{whole} {letter}iB");
    }
    let tenths = ((bytes - (whole << shift)) >> (shift - 10)) * 10 / 1024;
    format!("{whole}.{tenths} {letter}iB")
}

/// Lines of aligned columns; the first row is the head.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, size) in [("1", 1), ("4096", 4096), ("10G", 10 << 30), ("10GiB", 10 << 30), ("5kb", 5 << 10)] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "G", "-1", "1.5G", "10X", "0", "99999999999T", "1 G", "GG1", "1GG"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_short() {
        for (size, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (40 << 30, "40 GiB"), (u64::MAX, "15 EiB")]
        {
            assert_eq!(show_size(size), text);
        }
    }

    #[test]
    fn a_table_aligns_its_columns() {
        let rows = [vec!["NAME".into(), "CODE".into()], vec!["a".into(), "4+2".into()]];
        assert_eq!(table(&rows), "NAME  CODE\na     4+2\n");
    }
}
