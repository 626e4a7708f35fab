//! Snapshot files: their bytes, and that only whole and right ones are taken.

use super::*;
use crate::machine::Broken;
use holdfast_storage::SimulatedDisk;

#[derive(Default)]
struct Text(Vec<u8>);

impl StateMachine for Text {
    fn apply(&mut self, _: LogIndex, _: &[u8]) -> Result<bytes::Bytes, Broken> {
        Err(Broken("not here".into()))
    }

    fn snapshot(&self) -> Box<dyn Snapshot> {
        Box::new(Self(self.0.clone()))
    }

    fn restore(&mut self, from: &mut dyn Read) -> Result<(), Broken> {
        from.read_to_end(&mut self.0).map(drop).map_err(|e| Broken(e.to_string()))
    }
}

impl Snapshot for Text {
    fn write_to(&self, to: &mut dyn Write) -> io::Result<()> {
        to.write_all(&self.0)
    }
}

fn header() -> SnapshotHeader {
    SnapshotHeader {
        group: RaftGroupId(7),
        index: LogIndex(5),
        term: Term(2),
        voters: vec![1, 2, 3],
        learners: vec![4],
    }
}

fn written() -> SimulatedDisk {
    let disk = SimulatedDisk::default();
    let length = write(&disk, 1, &header(), &Text(b"content".to_vec()), Sabotage::None).unwrap();
    assert_eq!(disk.bytes(&name(RaftGroupId(7), 1)).len() as u64, length);
    disk
}

#[test]
fn the_bytes_of_a_snapshot_file_are_pinned() {
    let text: String = written().bytes(&name(RaftGroupId(7), 1)).iter().map(|b| format!("{b:02x}")).collect();
    let fixed = "4846534e01000000000000005c00000007000000000000000500000000000000020000000000000007000000000000003375af6103000100";
    let members = "0100000000000000020000000000000003000000000000000400000000000000";
    assert_eq!(text, [fixed, members, "03db3c02", "636f6e74656e74"].concat());
}

#[test]
fn a_snapshot_survives_a_loss_of_power_right_after_it_was_written() {
    let disk = written();
    disk.lose_power(&mut holdfast_common::Random::new(3));
    let mut machine = Text::default();
    let mark = SnapshotMark { index: LogIndex(5), term: Term(2), file: 1, bytes: 0 };
    restore_current(&disk, RaftGroupId(7), mark, &mut machine).unwrap();
    assert_eq!(machine.0, b"content");
    assert!(restore_current(&disk, RaftGroupId(7), SnapshotMark { index: LogIndex(6), ..mark }, &mut machine).is_err());
    assert!(restore_current(&disk, RaftGroupId(7), SnapshotMark { file: 2, ..mark }, &mut machine).is_err());
}

#[test]
fn any_flipped_bit_and_any_other_length_is_refused() {
    let disk = written();
    let bytes = disk.bytes(&name(RaftGroupId(7), 1));
    let refused = |bytes: Vec<u8>| {
        let damaged = disk.fork();
        damaged.damage(&name(RaftGroupId(7), 1), &bytes);
        verify(&*damaged.open(&name(RaftGroupId(7), 1)).unwrap()).is_err()
    };
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(refused(flipped), "bit {bit}");
    }
    for length in 0..bytes.len() {
        assert!(refused(bytes[..length].to_vec()), "{length} bytes");
    }
    assert!(refused([bytes.clone(), vec![0]].concat()));
    assert!(!refused(bytes));
}

#[test]
fn names_read_back() {
    assert_eq!(parse_name(&name(RaftGroupId(7), 255)), Some((RaftGroupId(7), 255)));
    for foreign in ["incoming-n1", "7.snap", "x-1.snap", ""] {
        assert_eq!(parse_name(foreign), None, "{foreign}");
    }
}
