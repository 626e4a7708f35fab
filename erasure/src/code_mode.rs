//! The code mode of a volume, `4+2`.

use std::fmt;
use std::str::FromStr;

use holdfast_common::limits::SHARDS_MAX;

/// k data and m parity shards of a full stripe; `1+m` is replication.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CodeMode {
    k: u8,
    m: u8,
}

/// Not a code mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodeModeError {
    /// Not two numbers with a plus.
    #[error("a code mode is written as data+parity, such as 4+2")]
    Malformed,
    /// No data shards.
    #[error("a code mode needs at least one data shard")]
    NoData,
    /// No parity shards.
    #[error("a code mode needs at least one parity shard, or a lost disk loses data")]
    NoParity,
    /// Too many in all.
    #[error("a code mode has at most {SHARDS_MAX} shards in all")]
    TooWide,
}

impl CodeMode {
    /// Checks k and m.
    ///
    /// # Errors
    /// Either is 0, or both together exceed [`SHARDS_MAX`].
    pub fn new(k: u32, m: u32) -> Result<Self, CodeModeError> {
        if k == 0 {
            return Err(CodeModeError::NoData);
        }
        if m == 0 {
            return Err(CodeModeError::NoParity);
        }
        match (u8::try_from(k), u8::try_from(m)) {
            (Ok(k), Ok(m)) if usize::from(k) + usize::from(m) <= SHARDS_MAX => Ok(Self { k, m }),
            _ => Err(CodeModeError::TooWide),
        }
    }

    /// Data shards of a full stripe.
    #[must_use]
    pub fn k(self) -> u8 {
        self.k
    }

    /// Parity shards of every stripe.
    #[must_use]
    pub fn m(self) -> u8 {
        self.m
    }

    /// Members of a block group: k + m.
    #[must_use]
    pub fn width(self) -> usize {
        usize::from(self.k) + usize::from(self.m)
    }
}

impl fmt::Display for CodeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.k, self.m)
    }
}

impl FromStr for CodeMode {
    type Err = CodeModeError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |part: &str| match part.bytes().all(|b| b.is_ascii_digit()) {
            true => part.parse().map_err(|_| CodeModeError::Malformed),
            false => Err(CodeModeError::Malformed),
        };
        let (k, m) = text.split_once('+').ok_or(CodeModeError::Malformed)?;
        Self::new(number(k)?, number(m)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_mode_reads_back_what_it_prints() {
        let all = (1..=31).flat_map(|k| (1..=32 - k).map(move |m| (k, m)));
        for (k, m) in all {
            let mode = CodeMode::new(k, m).unwrap();
            assert_eq!(mode.to_string().parse(), Ok(mode));
            assert_eq!(mode.width(), usize::try_from(k + m).unwrap());
        }
    }

    #[test]
    fn what_is_no_code_mode_is_refused_with_the_reason() {
        for text in ["", "4", "4+", "+2", "4+2+1", "4-2", "4 + 2", "-4+2", "++2", "4+2x", "99999999999+1"] {
            assert_eq!(text.parse::<CodeMode>(), Err(CodeModeError::Malformed), "{text}");
        }
        assert_eq!("0+2".parse::<CodeMode>(), Err(CodeModeError::NoData));
        assert_eq!("4+0".parse::<CodeMode>(), Err(CodeModeError::NoParity));
        for text in ["31+2", "1+32", "300+2", "16+17"] {
            assert_eq!(text.parse::<CodeMode>(), Err(CodeModeError::TooWide), "{text}");
        }
    }
}
