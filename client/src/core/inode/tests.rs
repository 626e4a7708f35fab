use super::*;
use holdfast_common::Random;
use std::collections::BTreeMap;

fn inode() -> Inode {
    Inode::new(Attr { inode: 5, ..Attr::default() }, Sabotage::None)
}

fn bytes(length: usize) -> Bytes {
    Bytes::from(vec![1; length])
}

fn write(inode: &mut Inode, offset: u64, data: Bytes) -> Written {
    inode.write(FileOffset(offset), data, 1, false, 0, Moment(0)).unwrap()
}

fn frozen(inode: &mut Inode, how: Freeze) -> Vec<usize> {
    let generations = inode.freeze(how);
    generations.filter_map(|generation| inode.frozen(generation).map(|f| f.ranges.bytes())).collect()
}

fn text(found: Found) -> Vec<u8> {
    let Found::Pieces(pieces) = found else { panic!("the map is not needed") };
    let bytes = |piece: PlanPiece| match piece {
        PlanPiece::Bytes(bytes) => bytes.to_vec(),
        PlanPiece::Zeros(count) => vec![0; usize::try_from(count).unwrap()],
        PlanPiece::Chunk { length_bytes, .. } => vec![b'#'; usize::try_from(length_bytes).unwrap()],
    };
    pieces.into_iter().flat_map(bytes).collect()
}

fn extent(length_bytes: u64, chunk: u64) -> Extent {
    Extent { file_offset: 0, length_bytes, chunk, chunk_offset: 0 }
}

fn record(chunk: u64) -> ChunkRecord {
    ChunkRecord { chunk, ..ChunkRecord::default() }
}

#[test]
fn only_full_chunks_are_frozen_while_a_file_streams() {
    let mut inode = inode();
    write(&mut inode, 0, bytes(1000));
    assert!(frozen(&mut inode, Freeze::FullChunks).is_empty());
    write(&mut inode, 1000, bytes(CHUNK_BYTES_MAX as usize));
    assert_eq!(frozen(&mut inode, Freeze::FullChunks), [CHUNK_BYTES_MAX as usize]);
    assert_eq!(frozen(&mut inode, Freeze::All), [1000]);
}

#[test]
fn an_append_goes_behind_what_is_dirty_frozen_and_committed() {
    let mut inode = Inode::new(Attr { inode: 5, size_bytes: 10, ..Attr::default() }, Sabotage::None);
    for end in [20, 30, 40] {
        let offset = inode.offset_of(WriteAt::End { believed: 0 });
        write(&mut inode, offset.0, bytes(10));
        inode.freeze(Freeze::All);
        assert_eq!(inode.size_bytes(), end);
    }
    let mut full = Inode::new(Attr { inode: 6, size_bytes: FILE_BYTES_MAX - 5, ..Attr::default() }, Sabotage::None);
    let offset = full.offset_of(WriteAt::End { believed: 0 });
    let refused = full.write(offset, bytes(6), 1, false, 0, Moment(0));
    assert_eq!(refused.err(), Some(Error::FileTooLarge));
    assert_eq!(full.size_bytes(), FILE_BYTES_MAX - 5);
}

#[test]
fn attributes_that_our_own_commit_overtook_do_not_shrink_the_file() {
    let mut inode = inode();
    inode.write(FileOffset(0), bytes(100), 50, false, 0, Moment(0)).unwrap();
    let generation = inode.freeze(Freeze::All).start;
    let stale = Attr { inode: 5, ..Attr::default() };
    let committed = Attr { inode: 5, size_bytes: 100, mtime_ns: 50, data_version: 1, ..Attr::default() };
    inode.committed(generation, Some(committed), &[], &[]);
    let seen = inode.refresh(stale);
    assert_eq!((seen.size_bytes, seen.mtime_ns), (100, 50));
}

/// Interleaving: another mount truncates, and this one hears of it while a flush of its own is under way.
#[test]
fn bytes_from_before_a_truncation_are_not_read_while_a_flush_is_under_way() {
    let mut inode = Inode::new(Attr { inode: 5, size_bytes: 8, data_version: 1, ..Attr::default() }, Sabotage::None);
    let map = FileMap { offset: 0, covered_bytes: 8, extents: vec![extent(8, 7)], chunks: vec![record(7)] };
    inode.learn_map(Attr { inode: 5, size_bytes: 8, data_version: 1, ..Attr::default() }, &map);
    assert_eq!(text(inode.find(FileOffset(0), 8)), b"########");
    write(&mut inode, 8, Bytes::from_static(b"new"));
    inode.freeze(Freeze::All);
    // Cut to nothing and grown again: what was in the chunk is a hole now.
    inode.refresh(Attr { inode: 5, size_bytes: 8, data_version: 3, truncate_generation: 2, ..Attr::default() });
    assert!(matches!(inode.find(FileOffset(0), 11), Found::MapUnknown { offset: FileOffset(0) }));
}

#[test]
fn a_map_is_kept_over_our_own_commit_however_early_its_attributes_are_heard() {
    let mut inode = inode();
    write(&mut inode, 0, Bytes::from_static(b"1234"));
    let generation = inode.freeze(Freeze::All).start;
    let attributes = Attr { inode: 5, size_bytes: 4, data_version: 1, ..Attr::default() };
    inode.refresh(attributes);
    assert_eq!(text(inode.find(FileOffset(0), 4)), b"1234");
    inode.committed(generation, Some(attributes), &[record(7)], &[extent(4, 7)]);
    assert_eq!(text(inode.find(FileOffset(0), 4)), b"####");
}

#[test]
fn suid_is_gone_from_the_write_on_not_from_its_flush_on() {
    let mut inode = Inode::new(Attr { inode: 5, mode: 0o6755, ..Attr::default() }, Sabotage::None);
    inode.write(FileOffset(0), bytes(1), 1, true, 0, Moment(0)).unwrap();
    assert_eq!(inode.attributes().mode, 0o755);
    inode.freeze(Freeze::All);
    assert_eq!(inode.attributes().mode, 0o755);
    assert_eq!(without_suid_sgid(0o6745), 0o2745);
}

#[test]
fn only_a_file_that_nobody_changed_since_its_creation_is_pristine() {
    let now = Moment(5);
    let attributes = |ctime_ns| Attr { inode: 5, btime_ns: 7, ctime_ns, ..Attr::default() };
    let of = |ctime_ns| {
        let mut inode = Inode::new(attributes(ctime_ns), Sabotage::None);
        assert!(!inode.is_pristine(now), "it was only opened");
        inode.created(&attributes(ctime_ns), now);
        inode
    };
    assert!(of(7).is_pristine(now) && !of(8).is_pristine(now));
    assert!(!of(7).is_pristine(now + PRISTINE_FOR));
    let mut spoilt = of(7);
    spoilt.spoil();
    assert!(!spoilt.is_pristine(now));
    let mut changed = of(7);
    changed.refresh(attributes(8));
    assert!(!changed.is_pristine(now));
}

#[test]
fn what_is_unflushed_is_read_before_what_is_mapped() {
    let mut inode = inode();
    write(&mut inode, 0, Bytes::from_static(b"frozen"));
    inode.freeze(Freeze::All);
    write(&mut inode, 2, Bytes::from_static(b"DI"));
    assert_eq!(text(inode.find(FileOffset(0), 100)), b"frDIen");
}

#[test]
fn a_flush_waits_for_the_generations_before_it_only() {
    let mut inode = inode();
    write(&mut inode, 0, bytes(10));
    let first = inode.freeze(Freeze::All).start;
    inode.wait(inode.frozen_through(), Waiter::Op(OpId(1)));
    write(&mut inode, 10, bytes(10));
    inode.freeze(Freeze::All);
    inode.wait(inode.frozen_through(), Waiter::Op(OpId(2)));
    inode.committed(first, None, &[], &[]);
    assert_eq!(inode.take_waiters(), [Waiter::Op(OpId(1))]);
    assert!(!inode.is_clean());
}

#[test]
fn what_is_dropped_gives_back_what_it_held() {
    let mut inode = inode();
    inode.write(FileOffset(0), bytes(10), 1, false, 4096, Moment(0)).unwrap();
    inode.freeze(Freeze::All);
    inode.write(FileOffset(10), bytes(5), 1, false, 4096, Moment(0)).unwrap();
    assert_eq!(inode.drop_unflushed(), Dropped { bytes: 15, charged_bytes: 8192 });
    assert!(inode.is_clean() && inode.is_unused());
}

#[test]
fn what_is_known_of_an_older_version_is_not_known_of_the_newer() {
    let at = |data_version| Attr { inode: 5, size_bytes: 16, data_version, ..Attr::default() };
    let mut inode = Inode::new(at(1), Sabotage::None);
    inode.learn_map(
        at(1),
        &FileMap { offset: 0, covered_bytes: 8, extents: vec![extent(8, 7)], chunks: vec![record(7)] },
    );
    inode.learn_map(at(2), &FileMap { offset: 8, covered_bytes: 8, extents: vec![], chunks: vec![] });
    assert_eq!(text(inode.find(FileOffset(8), 8)), [0; 8]);
    assert!(matches!(inode.find(FileOffset(0), 8), Found::MapUnknown { offset: FileOffset(0) }));
}

/// Interleaving: a map is answered, a commit of ours is answered, and then the map arrives.
#[test]
fn a_map_of_an_older_version_is_not_believed() {
    for (sabotage, known) in [(Sabotage::None, 8), (Sabotage::OlderMapsBelieved, 7)] {
        let at = |data_version| Attr { inode: 5, size_bytes: 16, data_version, ..Attr::default() };
        let map = |chunk| FileMap {
            offset: 0,
            covered_bytes: 16,
            extents: vec![extent(16, chunk)],
            chunks: vec![record(chunk)],
        };
        let mut inode = Inode::new(at(2), sabotage);
        inode.learn_map(at(2), &map(8));
        inode.learn_map(at(1), &map(7));
        let chunks: Vec<u64> =
            inode.map.ranges(FileOffset(0), FileOffset(16)).iter().map(|range| range.chunk.chunk).collect();
        assert_eq!(chunks, [known], "{sabotage:?}");
    }
}

/// Interleaving: another mount's commit is taken in between what this mount knows and its own.
#[test]
fn a_commit_behind_that_of_another_mount_does_not_make_the_former_map_new() {
    for (version, is_known) in [(2, true), (3, false)] {
        let at = |data_version| Attr { inode: 5, size_bytes: 16, data_version, ..Attr::default() };
        let mut inode = Inode::new(at(1), Sabotage::None);
        let map = FileMap { offset: 0, covered_bytes: 16, extents: vec![extent(16, 7)], chunks: vec![record(7)] };
        inode.learn_map(at(1), &map);
        write(&mut inode, 0, Bytes::from_static(b"1234"));
        let generation = inode.freeze(Freeze::All).start;
        inode.committed(generation, Some(at(version)), &[record(8)], &[extent(4, 8)]);
        assert_eq!(matches!(inode.find(FileOffset(4), 4), Found::Pieces(_)), is_known, "version {version}");
    }
}

/// A table that is a plain array: which byte of which chunk is where.
struct Mapped {
    attributes: Attr,
    places: Vec<Option<(u64, u64)>>,
    chunks: BTreeMap<u64, Vec<u8>>,
}

impl Mapped {
    fn map(&self, from: u64, count: u64) -> FileMap {
        let places = (0u64..).zip(&self.places).skip(to_index(from)).take(to_index(count));
        let mapped: Vec<_> = places.filter_map(|(at, place)| Some((at, (*place)?))).collect();
        let extent = |(at, (chunk, offset)): &(u64, (u64, u64))| Extent {
            file_offset: *at,
            length_bytes: 1,
            chunk: *chunk,
            chunk_offset: u32::try_from(*offset).unwrap(),
        };
        let named: BTreeSet<u64> = mapped.iter().map(|(_, (chunk, _))| *chunk).collect();
        let chunks = named.into_iter().map(record).collect();
        FileMap { offset: from, covered_bytes: count, extents: mapped.iter().map(extent).collect(), chunks }
    }

    /// Takes bytes at an offset, as this mount's commit or another's.
    fn take(&mut self, offset: u64, bytes: &[u8]) -> (ChunkRecord, Extent) {
        let chunk = self.chunks.len() as u64 + 1;
        self.chunks.insert(chunk, bytes.to_vec());
        let end = to_index(offset) + bytes.len();
        self.places.resize(self.places.len().max(end), None);
        for (at, place) in (0u64..).zip(&mut self.places[to_index(offset)..end]) {
            *place = Some((chunk, at));
        }
        self.attributes.size_bytes = self.places.len() as u64;
        (record(chunk), Extent { file_offset: offset, length_bytes: bytes.len() as u64, chunk, chunk_offset: 0 })
    }

    fn content(&self) -> Vec<u8> {
        let byte = |place: &Option<(u64, u64)>| place.map_or(0, |(chunk, at)| self.chunks[&chunk][to_index(at)]);
        self.places.iter().map(byte).collect()
    }
}

fn to_index(at: u64) -> usize {
    usize::try_from(at).unwrap()
}

/// The bytes of a range as the inode finds them. Parts of the map that it does not know are asked for, as often as it
/// takes.
fn found(inode: &mut Inode, table: &Mapped, from: u64, length: u64) -> Vec<u8> {
    loop {
        let pieces = match inode.find(FileOffset(from), length) {
            Found::Pieces(pieces) => pieces,
            Found::MapUnknown { offset } => {
                assert!(
                    inode.map.first_unknown(offset, offset + 1).is_some()
                        || inode.map_version != table.attributes.data_version
                );
                inode.learn_map(table.attributes, &table.map(offset.0, 10));
                continue;
            }
        };
        let bytes = |piece: PlanPiece| match piece {
            PlanPiece::Bytes(bytes) => bytes.to_vec(),
            PlanPiece::Zeros(count) => vec![0; to_index(count)],
            PlanPiece::Chunk { chunk, offset, length_bytes } => {
                table.chunks[&chunk.chunk][to_index(offset)..to_index(offset + length_bytes)].to_vec()
            }
        };
        return pieces.into_iter().flat_map(bytes).collect();
    }
}

/// Offset and bytes of each.
type Writes = Vec<(u64, Vec<u8>)>;

/// Random writes, flushes and commits of this mount, commits and cuts of another: a read finds what is unflushed over what the
/// table has.
#[test]
fn a_read_finds_what_is_unflushed_over_what_the_table_has() {
    for seed in 0..300 {
        let mut random = Random::new(seed);
        let attributes = Attr { inode: 5, ..Attr::default() };
        let mut table = Mapped { attributes, places: Vec::new(), chunks: BTreeMap::new() };
        let mut inode = Inode::new(attributes, Sabotage::None);
        // Generations on their way, and what is dirty.
        let mut flushing: VecDeque<(u64, Writes)> = VecDeque::new();
        let mut dirty = Writes::new();
        for stamp in 1..60u8 {
            let (at, data) = (random.below(100), vec![stamp; random.index(40) + 1]);
            match random.below(8) {
                0..=2 => {
                    write(&mut inode, at, Bytes::from(data.clone()));
                    dirty.push((at, data));
                }
                3 => {
                    for generation in inode.freeze(Freeze::All) {
                        flushing.push_back((generation, std::mem::take(&mut dirty)));
                    }
                }
                4..=5 => {
                    let Some((generation, writes)) = flushing.pop_front() else { continue };
                    let (mut records, mut extents) = (Vec::new(), Vec::new());
                    for (offset, bytes) in &inode.frozen(generation).unwrap().ranges.ranges.clone() {
                        let (record, extent) = table.take(offset.0, bytes);
                        records.push(record);
                        extents.push(extent);
                    }
                    assert!(!writes.is_empty());
                    table.attributes.data_version += 1;
                    inode.committed(generation, Some(table.attributes), &records, &extents);
                }
                6 => {
                    if random.chance(50) {
                        table.take(at, &data);
                    } else {
                        table.places.truncate(to_index(at));
                        table.attributes.size_bytes = table.places.len() as u64;
                        table.attributes.truncate_generation += 1;
                    }
                    table.attributes.data_version += 1;
                }
                _ => inode.forget_map(),
            }
            inode.refresh(table.attributes);
            let mut wanted = table.content();
            for (offset, bytes) in flushing.iter().flat_map(|(_, writes)| writes).chain(&dirty) {
                let end = to_index(*offset) + bytes.len();
                wanted.resize(wanted.len().max(end), 0);
                wanted[to_index(*offset)..end].copy_from_slice(bytes);
            }
            assert_eq!(inode.size_bytes(), wanted.len() as u64, "seed {seed}, step {stamp}");
            let from = random.below(120);
            let length = random.below(60);
            let seen = found(&mut inode, &table, from, length);
            let part = &wanted[to_index(from).min(wanted.len())..to_index(from + length).min(wanted.len())];
            assert!(seen == part, "seed {seed}, step {stamp}: from {from}: {seen:?} and not {part:?}");
        }
    }
}
