//! What takes a disk out of service, and what only fills it.

use super::*;

#[test]
fn d6_a_failed_sync_takes_the_disk_out_for_good() {
    let (disk, mut store) = fresh();
    put_one(&mut store, 1, SMALL);
    disk.fail_next(Fault::Sync);
    assert_eq!(commit_one(&mut store, Request::Put(put(2, 1, SMALL))), Err(ShardError::DiskFailed));
    let operations = disk.operations();
    assert_eq!(commit_one(&mut store, Request::Put(put(3, 1, SMALL))), Err(ShardError::DiskFailed));
    assert_eq!(read(&store.reader(), 1, 1, SMALL), Err(ShardError::DiskFailed));
    assert!(!store.maintain(true));
    assert_eq!(store.checkpoint(), Err(ShardError::DiskFailed));
    assert_eq!(disk.operations(), operations, "nothing is retried");
    assert!(store.reader().status().failed);
}

#[test]
fn an_io_error_of_a_write_takes_the_disk_out() {
    for bytes in [SMALL, BULK] {
        let (disk, mut store) = fresh();
        put_one(&mut store, 1, bytes);
        disk.fail_next(Fault::Write(libc::EIO));
        assert_eq!(commit_one(&mut store, Request::Put(put(2, 1, bytes))), Err(ShardError::DiskFailed));
        assert!(store.is_failed());
    }
}

#[test]
fn a_full_file_system_fails_the_put_and_not_the_disk() {
    for bytes in [SMALL, BULK] {
        let (disk, mut store) = fresh();
        put_one(&mut store, 1, bytes);
        disk.fail_next(Fault::Write(libc::ENOSPC));
        let requests = [Request::Put(put(2, 1, bytes)), Request::Put(put(3, 1, bytes))];
        assert_eq!(store.commit(&requests), [Err(ShardError::NoSpace); 2]);
        assert_eq!(store.commit(&requests), [Ok(Done::default()); 2]);
        for survival in [Survival::All, Survival::Nothing] {
            let crashed = survival.of(&disk, &mut Random::new(1));
            let (store, report) = Store::open(crashed.root(), DISK, options(), alone()).unwrap();
            assert_eq!((report.damaged_bytes, report.torn_count), (0, 0));
            for chunk in 1..=3 {
                assert_eq!(read(&store.reader(), chunk, 1, bytes).unwrap(), payload(chunk, 1, bytes));
            }
        }
    }
}

#[test]
fn a_limited_disk_fills_says_so_and_takes_more_after_a_delete() {
    let disk = SimulatedDisk::default();
    create(&*disk.root()).unwrap();
    let limited = StoreOptions { limit_bytes: Some(2 << 20), ..options() };
    let (mut store, _) = Store::open(disk.root(), DISK, limited, alone()).unwrap();
    let requests: Vec<Request> = (1..=40).map(|chunk| Request::Put(put(chunk, 1, BULK))).collect();
    let outcomes = store.commit(&requests);
    let stored = outcomes.iter().filter(|o| o.is_ok()).count();
    assert_eq!(stored, 14, "2 MiB less the soft threshold hold 14 shards of 132 KiB");
    assert!(outcomes[stored..].iter().all(|o| *o == Err(ShardError::NoSpace)));
    assert!(store.reader().status().available_bytes < BULK as u64 + 4096);
    commit_one(&mut store, delete(&[1, 2, 3])).unwrap();
    settle(&mut store);
    (101..=103).for_each(|chunk| put_one(&mut store, chunk, BULK));
    assert!(!store.is_failed());
}

#[test]
fn a_lost_volumes_file_is_refused() {
    let (disk, _store) = fresh();
    disk.lose_file("volumes");
    assert!(Store::open(disk.root(), DISK, options(), alone()).is_err());
}
