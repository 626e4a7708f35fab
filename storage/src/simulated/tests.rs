//! Claims about the simulated disk: it forgets what it may and nothing else, and everything follows from its seed.

use super::*;
use std::collections::BTreeSet;

fn disk_with(name: &str, bytes: &[u8]) -> (SimulatedDisk, Arc<dyn DiskFile>) {
    let disk = SimulatedDisk::new(1);
    let file = disk.create(name).unwrap();
    file.write_at(0, bytes).unwrap();
    file.sync_data().unwrap();
    disk.sync_names().unwrap();
    (disk, file)
}

fn content(disk: &SimulatedDisk, name: &str) -> Vec<u8> {
    disk.bytes(name)
}

#[test]
fn what_was_synced_survives_and_every_other_sector_is_in_a_state_it_went_through() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let (disk, file) = disk_with("a", &[1; 2048]);
        file.write_at(0, &[2; 1024]).unwrap();
        file.write_at(512, &[3; 1024]).unwrap();
        disk.lose_power(&mut Random::new(seed));
        let states: Vec<u8> = content(&disk, "a").chunks(512).map(|sector| sector[0]).collect();
        assert!(content(&disk, "a").chunks(512).all(|sector| sector.iter().all(|byte| *byte == sector[0])));
        assert!((1..=2).contains(&states[0]) && (1..=3).contains(&states[1]), "{states:?}");
        assert!([1, 3].contains(&states[2]) && states[3] == 1, "{states:?}");
        seen.insert(states);
    }
    assert!(seen.len() >= 8, "only {seen:?}");
}

#[test]
fn unsynced_names_and_lengths_may_go_and_renames_are_whole() {
    let mut seen = BTreeSet::new();
    for seed in 0..200 {
        let (disk, _) = disk_with("a", b"old");
        let file = disk.create("b").unwrap();
        file.write_at(0, b"new").unwrap();
        file.sync_data().unwrap();
        disk.rename("b", "a").unwrap();
        disk.create("c").unwrap();
        disk.lose_power(&mut Random::new(seed));
        let names = disk.list().unwrap();
        assert!(names.contains(&"a".to_owned()));
        let old = content(&disk, "a") == b"old";
        assert!(old || content(&disk, "a") == b"new" && !names.contains(&"b".to_owned()), "seed {seed}");
        seen.insert((old, names));
    }
    assert!(seen.len() >= 5, "only {seen:?}");
}

#[test]
fn a_replacement_is_the_old_content_or_the_new_wherever_the_machine_dies() {
    let mut ends = BTreeSet::new();
    for operations in 0..8 {
        for seed in 0..20 {
            let (disk, _) = disk_with("a", b"old");
            disk.die_after(operations);
            let done = disk.replace("a", b"new content").is_ok();
            disk.lose_power(&mut Random::new(seed));
            let found = disk.read("a").unwrap();
            assert!(found == b"new content" || (!done && found == b"old"), "dead after {operations}, seed {seed}");
            ends.insert((done, found));
        }
    }
    assert_eq!(ends.len(), 3);
}

#[test]
fn a_block_is_punched_whole_or_not_at_all() {
    for seed in 0..100 {
        let (disk, file) = disk_with("a", &[7; 3 * 4096]);
        file.punch(4096, 8192).unwrap();
        file.write_at(8192, &[9; 512]).unwrap();
        disk.lose_power(&mut Random::new(seed));
        let bytes = content(&disk, "a");
        assert!(bytes[..4096].iter().all(|byte| *byte == 7));
        assert!(bytes[4096..8192].iter().all(|byte| *byte == bytes[4096]));
        assert!([0, 7].contains(&bytes[8192 + 512]));
        let rest = bytes[8192 + 512];
        assert!(bytes[8192 + 512..].iter().all(|byte| *byte == rest));
        assert!(bytes[8192] == rest || (bytes[8192] == 9 && rest == 0), "a write into a hole that never was");
    }
}

#[test]
fn a_killed_process_loses_nothing_and_its_handles_are_dead() {
    let (disk, file) = disk_with("a", b"old");
    file.write_at(0, b"new").unwrap();
    disk.lose_process();
    assert!(file.read_at(0, &mut [0; 3]).is_err() && file.sync_data().is_err());
    assert_eq!(content(&disk, "a"), b"new");
    disk.lose_unsynced();
    assert_eq!(content(&disk, "a"), b"old");
}

#[test]
fn after_a_failed_sync_the_next_one_says_ok_and_lies() {
    let (disk, file) = disk_with("a", &[1; 512]);
    file.write_at(0, &[2; 512]).unwrap();
    disk.fail_next(Fault::Sync);
    file.sync_data().unwrap_err();
    file.sync_data().unwrap();
    disk.lose_unsynced();
    assert_eq!(content(&disk, "a"), [1; 512]);
}

#[test]
fn faults_come_by_chance_follow_from_the_seed_and_are_counted() {
    let run = |seed| {
        let disk = SimulatedDisk::new(seed);
        disk.set_faults(Faults {
            read_error_ppm: 50_000,
            write_error_ppm: 50_000,
            sync_error_ppm: 50_000,
            sync_names_error_ppm: 50_000,
            no_space_ppm: 50_000,
            no_descriptor_ppm: 50_000,
            bit_rot_ppm: 50_000,
            phantom_write_ppm: 50_000,
            misdirected_write_ppm: 50_000,
            slow_ppm: 50_000,
            slow_ns_max: 1_000_000,
            operation_ns: 1_000,
        });
        let mut results = Vec::new();
        for round in 0..400u64 {
            let name = format!("file-{}", round % 7);
            let file = disk.create(&name).or_else(|_| disk.open(&name));
            let Ok(file) = file else { continue };
            results.push(file.write_at(round % 5 * 512, &[1; 1024]).is_ok());
            results.push(file.sync_data().is_ok());
            results.push(file.read_at(0, &mut [0; 2048]).is_ok());
            results.push(disk.sync_names().is_ok());
        }
        let bytes: Vec<Vec<u8>> = disk.list().unwrap().iter().map(|name| disk.bytes(name)).collect();
        (results, bytes, disk.counts(), disk.take_elapsed_ns())
    };
    let (results, _, counts, elapsed_ns) = run(3);
    assert_eq!(run(3), run(3));
    assert_ne!(run(4).0, results);
    for (what, count) in [
        ("read errors", counts.read_errors),
        ("write errors", counts.write_errors),
        ("sync errors", counts.sync_errors),
        ("full disks", counts.no_space),
        ("missing descriptors", counts.no_descriptor),
        ("rotten bits", counts.rotten_bits),
        ("phantom writes", counts.phantom_writes),
        ("misdirected writes", counts.misdirected_writes),
        ("slow operations", counts.slow_operations),
    ] {
        assert!(count > 0, "no {what}");
    }
    assert!(elapsed_ns > 400 * 4 * 1_000);
}

#[test]
fn phantom_and_misdirected_writes_show_when_the_cache_is_gone() {
    let phantom = Faults { phantom_write_ppm: 1_000_000, ..Faults::default() };
    let misdirected = Faults { misdirected_write_ppm: 1_000_000, ..Faults::default() };
    for faults in [phantom, misdirected] {
        let (disk, file) = disk_with("a", &[1; 8 * 512]);
        disk.set_faults(faults);
        file.write_at(512, &[2; 512]).unwrap();
        file.sync_data().unwrap();
        assert_eq!(content(&disk, "a")[512], 2);
        disk.drop_caches();
        let twos = content(&disk, "a").iter().filter(|byte| **byte == 2).count();
        let elsewhere = if faults == phantom { 0 } else { 512 };
        assert!(content(&disk, "a")[512] == 1 && twos == elsewhere || twos == 0, "{twos}");
    }
}

#[test]
fn a_full_disk_takes_no_new_block_and_gives_back_what_was_removed() {
    let (disk, file) = disk_with("a", &[1; 4096]);
    disk.set_capacity(3 * 4096);
    file.write_at(4096, &[1; 8192]).unwrap();
    let error = file.write_at(3 * 4096, &[1; 10]).unwrap_err();
    assert!(crate::is_no_space(&error));
    file.write_at(0, &[2; 4096]).unwrap();
    file.punch(0, 4096).unwrap();
    file.write_at(3 * 4096, &[1; 10]).unwrap();
    disk.remove("a").unwrap();
    disk.sync_names().unwrap();
    assert_eq!(disk.space().unwrap().available_bytes, 0);
    drop(file);
    assert_eq!(disk.space().unwrap().available_bytes, 3 * 4096 / 2);
}

#[test]
fn descriptors_run_out_and_come_back() {
    let disk = SimulatedDisk::new(1);
    disk.set_descriptors(2);
    let held = [disk.create("a").unwrap(), disk.create("b").unwrap()];
    assert!(crate::is_out_of_descriptors(&disk.open("a").err().unwrap()));
    drop(held);
    disk.open("a").unwrap();
}

#[test]
fn unreadable_blocks_say_so_until_they_are_written() {
    let (disk, file) = disk_with("a", &[1; 8192]);
    disk.make_unreadable("a", 5000, 1);
    file.read_at(0, &mut [0; 8192]).unwrap_err();
    assert_eq!(file.read_at(0, &mut [0; 4096]).unwrap(), 4096);
    file.write_at(4096, &[3; 4096]).unwrap();
    assert_eq!(file.read_at(0, &mut [0; 8192]).unwrap(), 8192);
}

#[test]
fn a_name_that_a_crash_leaves_leads_to_a_file_also_after_a_kill_before() {
    for seed in 0..50 {
        let disk = SimulatedDisk::new(seed);
        disk.create("a").unwrap();
        disk.remove("a").unwrap();
        disk.lose_process();
        disk.lose_power(&mut Random::new(seed));
        for name in disk.list().unwrap() {
            disk.open(&name).unwrap();
        }
    }
}
