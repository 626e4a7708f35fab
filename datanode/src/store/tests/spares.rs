//! Spare segments.

use super::*;

/// Interleaving: a spare segment is being made, segments are recycled, and the new one is ready; the process may die then.
#[test]
fn no_more_spare_segments_are_kept_than_two() {
    let (disk, mut store) = fresh();
    (1..=120).for_each(|chunk| put_one(&mut store, chunk, SMALL));
    commit_one(&mut store, delete(&(1..=120).collect::<Vec<_>>())).unwrap();
    store.spares.clear();
    let planned = store.plan_spare().unwrap();
    settle(&mut store);
    assert_eq!(store.spares.len(), 2, "segments were recycled");
    store.add_spare(make_segment(&*disk.root(), planned, false));
    assert_eq!(store.spares.len(), 3);
    let mut again = open(&Survival::All.of(&disk, &mut Random::new(1)));
    for store in [&mut store, &mut again] {
        settle(store);
        assert_eq!(store.spares.len(), 2);
    }
    let segments = disk.root().list().unwrap().into_iter().filter(|name| name.starts_with("small")).count();
    assert_eq!(segments, 3, "an open one and two spare ones");
}
