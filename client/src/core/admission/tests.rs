use super::*;
use holdfast_common::Random;

/// Interleaving: a raise is asked for, a commit is applied behind it and answered before it.
#[test]
fn a_commit_that_overtakes_a_raise_leaves_no_reservation_that_is_not_there() {
    let mut quota = Quota { limited: true, reserved_bytes: 100, charged_bytes: 100, ..Quota::default() };
    let before = quota.flushed_bytes();
    quota.flush(60);
    quota.raised(150, before);
    assert_eq!((quota.charged_bytes, quota.reserved_bytes), (40, 90));
}

#[test]
fn what_was_charged_goes_with_its_pages_and_what_is_beyond_with_the_first() {
    let mut charges = Charges::default();
    charges.add(FileOffset(0), 40960, 40960);
    (0..5).for_each(|at| charges.add(FileOffset(at * 10), 1, 4096));
    // The page across the end is committed first with what is before it.
    assert_eq!(charges.take(Some(FileOffset(4100))), 7 * 4096);
    charges.add(FileOffset(0), 8192, 4096);
    assert_eq!(charges.take(Some(FileOffset(8192))), 4096);
    assert_eq!(charges.take(None), 8 * 4096);
    assert_eq!(charges.take(None), 0);
}

#[test]
fn a_range_is_charged_the_pages_it_touches() {
    assert_eq!(charge(FileOffset(0), 0), 0);
    assert_eq!(charge(FileOffset(0), 1), 4096);
    assert_eq!(charge(FileOffset(4095), 2), 8192);
    assert_eq!(charge(FileOffset(4096), 4096), 4096);
}

#[test]
fn disks_that_share_a_file_system_do_not_count_its_free_bytes_twice() {
    let grant = |file_system| DiskGrant {
        granted_bytes: 1700,
        file_system,
        file_system_free_bytes: 1600,
        ..DiskGrant::default()
    };
    let (here, there) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
    let granted = [(here, grant(5)), (here, grant(5)), (there, grant(5)), (here, grant(0))];
    assert_eq!(shared_once(&granted), [659, 659, 1600, 1600]);
}

#[test]
fn the_best_stripe_decides_what_can_be_stored() {
    let code = CodeMode::new(4, 2).unwrap();
    assert_eq!(storable_bytes(vec![10; 6], code), 40);
    // Two full disks: 2+2 over the other four.
    assert_eq!(storable_bytes(vec![10, 0, 10, 10, 0, 10], code), 20);
    // One nearly full disk: 3+2 beats 4+2.
    assert_eq!(storable_bytes(vec![10, 10, 10, 10, 10, 1], code), 30);
    assert_eq!(storable_bytes(vec![10, 10], code), 0);
}

#[test]
fn a_write_larger_than_the_memory_has_it_alone() {
    let mut memory = Memory::new(10);
    assert!(memory.fits(20));
    memory.take(20);
    assert!(!memory.fits(1) && memory.is_pressed());
    memory.give_back(20);
    assert!(memory.fits(1) && !memory.is_pressed());
}

/// Random interleavings of raises, commits and returns with a table that holds the reservation: no commit ever needs more
/// than the table holds for the session.
#[test]
fn what_is_admitted_is_always_covered_by_the_tables_reservation() {
    struct Raise {
        bytes: u64,
        flushed_before: u64,
        executed: bool,
    }
    for seed in 0..500 {
        let mut random = Random::new(seed);
        let (mut quota, mut table) = (Quota::new(true), 0);
        let mut dirty: Vec<u64> = Vec::new();
        // Commits on their way, and whether the table has executed them.
        let mut commits: Vec<(u64, bool)> = Vec::new();
        let mut raise: Option<Raise> = None;
        let mut committed = 0;
        for _ in 0..400 {
            match random.below(7) {
                0..=1 => {
                    let bytes = random.below(50) + 1;
                    if quota.fits(bytes) {
                        quota.charge(bytes);
                        dirty.push(bytes);
                    } else if raise.is_none() {
                        let (bytes, flushed_before) = (quota.charged_bytes() + bytes + 20, quota.flushed_bytes());
                        raise = Some(Raise { bytes, flushed_before, executed: false });
                    }
                }
                2 => commits.extend(dirty.pop().map(|bytes| (bytes, false))),
                3 => {
                    if let Some((bytes, executed)) = commits.iter_mut().find(|(_, executed)| !executed) {
                        assert!(*bytes <= table, "seed {seed}: {bytes} of {table} bytes");
                        (table, *executed) = (table - *bytes, true);
                        committed += 1;
                    }
                }
                4 => {
                    if let Some(at) = commits.iter().position(|(_, executed)| *executed) {
                        quota.flush(commits.swap_remove(at).0);
                    }
                }
                5 => match raise.take() {
                    Some(asked) if asked.executed && asked.bytes == 0 => {}
                    Some(asked) if asked.executed => quota.raised(asked.bytes, asked.flushed_before),
                    Some(asked) => {
                        table = asked.bytes;
                        raise = Some(Raise { executed: true, ..asked });
                    }
                    None if quota.take_unused() => {
                        raise = Some(Raise { bytes: 0, flushed_before: 0, executed: false });
                    }
                    None => {}
                },
                _ => {}
            }
        }
        assert!(committed > 3, "seed {seed}: {committed} commits");
    }
}

#[test]
fn without_a_limit_nothing_is_reserved_nor_given_back() {
    let mut quota = Quota::new(false);
    assert!(quota.fits(u64::MAX) && !quota.take_unused());
    let mut limited = Quota::new(true);
    assert!(limited.fits(0) && !limited.fits(1) && !limited.take_unused(), "the table holds nothing for it");
    limited.raised(10, 0);
    limited.charge(4);
    assert!(limited.fits(6) && !limited.fits(7) && !limited.take_unused());
    limited.flush(4);
    assert!(limited.fits(6) && !limited.fits(7), "a commit consumes what it was charged");
    assert!(limited.take_unused() && !limited.take_unused() && !limited.fits(1));
}

#[test]
fn a_cover_is_used_up_by_what_is_flushed_and_by_time() {
    let code = CodeMode::new(2, 1).unwrap();
    let grant = |bytes, status: Status| {
        let grant = DiskGrant { granted_bytes: bytes, status: status.into(), ..DiskGrant::default() };
        (IpAddr::from([127, 0, 0, 1]), grant)
    };
    let mut cover = Cover::default();
    let (now, soon) = (Moment(0), Moment(0) + SPACE_RENEW_AFTER);
    assert!(!cover.covers(0, now));
    // One answer is not more than the parity; a failed disk says nothing.
    let too_few = [grant(1700, Status::Ok), grant(1700, Status::DiskFailed)];
    assert_eq!(cover.granted(&too_few, code, now), Granted::Unknown);
    let enough = [grant(1700, Status::Ok), grant(1700, Status::Ok), grant(0, Status::NoSpace)];
    assert_eq!(cover.granted(&enough, code, now), Granted::Known);
    assert!(cover.covers(1600, now) && !cover.covers(1601, now));
    cover.flushed(600);
    assert!(cover.covers(1000, now) && !cover.covers(1001, now));
    assert!(!cover.covers(1, soon) && !cover.is_fresh(soon));
    cover.forget();
    assert!(!cover.is_fresh(now));
}

#[test]
fn a_grant_of_an_unknown_status_promises_nothing() {
    let host = IpAddr::from([127, 0, 0, 1]);
    let grant = |status| DiskGrant { status, granted_bytes: 1 << 20, ..DiskGrant::default() };
    let code = CodeMode::new(2, 1).unwrap();
    let mut cover = Cover::default();
    let unknown = cover.granted(&[(host, grant(0)), (host, grant(999)), (host, grant(999))], code, Moment(0));
    assert_eq!((unknown, cover.covers(1, Moment(0))), (Granted::Unknown, false));
    let known = cover.granted(&[(host, grant(0)), (host, grant(0)), (host, grant(999))], code, Moment(0));
    assert_eq!((known, cover.covers(1000, Moment(0))), (Granted::Known, true), "two disks are enough");
}
