//! What a file may hold: exactly what its holder wrote, and after a crash or a loss that was told, for each byte what was
//! durable or what was written since.

use std::collections::BTreeSet;

use bytes::Bytes;

/// A change since the file was last known to be durable.
enum Change {
    Write { offset: usize, data: Bytes },
    Resize(usize),
    Zero { offset: usize, length: usize },
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, data } => {
                content.resize(content.len().max(offset + data.len()), 0);
                content[*offset..offset + data.len()].copy_from_slice(data);
            }
            Self::Resize(size) => content.resize(*size, 0),
            Self::Zero { offset, length } => {
                let end = (offset + length).min(content.len());
                if *offset < end {
                    content[*offset..end].fill(0);
                }
            }
        }
    }
}

/// One file and what is known of it.
#[derive(Default)]
pub(crate) struct File {
    /// Which client has it, so that nobody else may touch it.
    pub(crate) holder: Option<usize>,
    /// As it was when it was last known to be durable.
    durable: Vec<u8>,
    /// As its holder must see it.
    current: Vec<u8>,
    pending: Vec<Change>,
    /// What is pending may be lost, whole or in parts.
    doubtful: bool,
}

impl File {
    pub(crate) fn size(&self) -> usize {
        self.current.len()
    }

    pub(crate) fn is_doubtful(&self) -> bool {
        self.doubtful
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.pending.push(change);
    }

    pub(crate) fn wrote(&mut self, offset: usize, data: Bytes) {
        self.change(Change::Write { offset, data });
    }

    pub(crate) fn resized(&mut self, size: usize) {
        self.change(Change::Resize(size));
    }

    pub(crate) fn zeroed(&mut self, offset: usize, length: usize) {
        self.change(Change::Zero { offset, length });
    }

    /// A change may have happened or not.
    pub(crate) fn doubt(&mut self) {
        self.doubtful = true;
    }

    /// Everything is durable, of what is left.
    pub(crate) fn synced(&mut self) {
        if !self.doubtful {
            self.durable.clone_from(&self.current);
            self.pending.clear();
        }
    }

    /// The whole content was read. While nothing is in doubt it must be what was written; else it must be possible, and is
    /// what is known from now on, if it is `settled`: nothing of what is pending can come any more.
    pub(crate) fn seen(&mut self, content: &[u8], settled: bool) -> Result<(), String> {
        if !self.doubtful {
            return match first_difference(content, &self.current) {
                None => Ok(()),
                Some(at) => Err(format!("byte {at} of {} differs from what was written", content.len())),
            };
        }
        self.is_possible(content)?;
        if settled {
            self.durable = content.to_vec();
            self.current = content.to_vec();
            self.pending.clear();
            self.doubtful = false;
        }
        Ok(())
    }

    /// Whether what was read could be what is left of the pending changes.
    pub(crate) fn is_possible(&self, content: &[u8]) -> Result<(), String> {
        let mut sizes = BTreeSet::from([self.durable.len()]);
        for change in &self.pending {
            match change {
                Change::Write { offset, data } => drop(sizes.insert(offset + data.len())),
                Change::Resize(size) => drop(sizes.insert(*size)),
                Change::Zero { .. } => {}
            }
        }
        if !sizes.contains(&content.len()) {
            return Err(format!("a size of {} that it never had", content.len()));
        }
        for (at, byte) in content.iter().enumerate() {
            let was = self.durable.get(at).copied().unwrap_or(0);
            if *byte != was && !self.pending.iter().any(|change| change.may_leave(at, *byte)) {
                return Err(format!("byte {at} of {} was never written there", content.len()));
            }
        }
        Ok(())
    }
}

impl Change {
    /// Whether this change, or a part of it, can leave `byte` at a place.
    fn may_leave(&self, at: usize, byte: u8) -> bool {
        match self {
            Self::Write { offset, data } => {
                let inside = at.checked_sub(*offset).and_then(|inside| data.get(inside));
                // A write beyond the end leaves a hole before it.
                inside == Some(&byte) || (byte == 0 && at < *offset)
            }
            Self::Resize(size) => byte == 0 && at >= (*size).min(at),
            Self::Zero { offset, length } => byte == 0 && (*offset..offset + length).contains(&at),
        }
    }
}

fn first_difference(seen: &[u8], wanted: &[u8]) -> Option<usize> {
    let differs = seen.iter().zip(wanted).position(|(a, b)| a != b);
    differs.or_else(|| (seen.len() != wanted.len()).then(|| seen.len().min(wanted.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> File {
        let mut file = File::default();
        file.wrote(0, Bytes::from_static(b"aaaa"));
        file.synced();
        file.wrote(2, Bytes::from_static(b"bbbb"));
        file
    }

    #[test]
    fn what_is_not_in_doubt_must_be_exact() {
        let mut file = file();
        assert_eq!(file.seen(b"aabbbb", true), Ok(()));
        assert!(file.seen(b"aabbb", true).is_err());
        assert!(file.seen(b"aaaabb", true).is_err());
    }

    #[test]
    fn after_a_doubt_each_byte_is_old_or_new_and_then_known() {
        for possible in [&b"aaaa"[..], b"aabbbb", b"aaabbb"] {
            let mut file = file();
            file.doubt();
            assert_eq!(file.seen(possible, true), Ok(()));
            assert_eq!(file.seen(possible, true), Ok(()));
            assert!(!file.is_doubtful());
        }
        for impossible in [&b"aaxb"[..], b"bbbbbb", b"aaaab", b""] {
            let mut file = file();
            file.doubt();
            assert!(file.seen(impossible, true).is_err(), "{impossible:?}");
        }
    }
}
