use super::*;
use holdfast_common::RaftGroupId;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

const NEVER: Duration = Duration::from_secs(3600);

fn read(group: RaftGroupId) -> Item {
    Item::Read { group, ticket: oneshot::channel().0 }
}

fn groups(items: &[Item]) -> Vec<u64> {
    let group = |item: &Item| match item {
        Item::Read { group, .. } | Item::SnapshotReported { group, .. } => group.0,
        _ => panic!("not in these tests"),
    };
    items.iter().map(group).collect()
}

fn heavy(group: RaftGroupId) -> Item {
    Item::SnapshotReported { group, to: NodeId(2), ok: true }
}

/// A queue whose turns by visitors are told to `visits`, and whose visitors leave as much as `leaves` says.
struct Fixture {
    queue: Arc<Queue>,
    leaves: Arc<AtomicUsize>,
    visits: mpsc::Receiver<(ThreadId, Vec<u64>)>,
}

impl Fixture {
    fn new(mut during: impl FnMut(&Queue) + Send + 'static) -> Self {
        let (queue, leaves) = (Arc::new(Queue::new(1 << 20, 100)), Arc::new(AtomicUsize::new(0)));
        let (tell, visits) = mpsc::channel();
        let (inner, left) = (Arc::downgrade(&queue), Arc::clone(&leaves));
        let seat = Mutex::new(move |items: Vec<Item>| {
            tell.send((thread::current().id(), groups(&items))).unwrap();
            during(&inner.upgrade().unwrap());
            left.load(Ordering::SeqCst) > 0
        });
        queue.let_visitors(Box::new(move |items| (*seat.lock())(items)));
        Self { queue, leaves, visits }
    }

    /// The driver's thread takes once, and sleeps when this returns, unless the time has come already.
    fn sleeper(&self, until: Duration) -> JoinHandle<Option<Vec<u64>>> {
        let queue = Arc::clone(&self.queue);
        let taking = thread::spawn(move || queue.take(Instant::now() + until).map(|items| groups(&items)));
        while self.queue.state.lock().drives != Drives::Nobody && !taking.is_finished() {
            thread::yield_now();
        }
        taking
    }
}

#[test]
fn who_comes_while_the_thread_sleeps_drives_himself() {
    let fixture = Fixture::new(|_| ());
    let taking = fixture.sleeper(NEVER);
    fixture.queue.push(read(RaftGroupId(1))).unwrap();
    fixture.queue.push_all([read(RaftGroupId(2)), read(RaftGroupId(3))].into_iter());
    let here = thread::current().id();
    assert_eq!(fixture.visits.try_iter().collect::<Vec<_>>(), [(here, vec![1]), (here, vec![2, 3])]);
    assert!(!taking.is_finished());
    fixture.queue.close();
    assert_eq!(taking.join().unwrap(), None);
}

#[test]
fn what_a_visitor_leaves_is_the_threads() {
    let fixture = Fixture::new(|_| ());
    let taking = fixture.sleeper(NEVER);
    fixture.leaves.store(1, Ordering::SeqCst);
    fixture.queue.push(read(RaftGroupId(1))).unwrap();
    assert_eq!(taking.join().unwrap(), Some(vec![]), "woken, with nothing new");
    fixture.queue.push(read(RaftGroupId(2))).unwrap();
    assert_eq!(fixture.visits.try_iter().count(), 1, "the thread drives until it sleeps again");
    assert_eq!(fixture.queue.take(Instant::now()).map(|items| groups(&items)), Some(vec![2]));
}

#[test]
fn a_turn_is_filled_up_to_its_bound() {
    let queue = Queue::new(usize::MAX, 100);
    let propose = |bytes: usize| Item::Propose {
        group: RaftGroupId(1),
        command: vec![0; bytes].into(),
        ticket: oneshot::channel().0,
    };
    queue.push(propose(TURN_BYTES_MAX / 2)).unwrap();
    let mut turn = queue.take(Instant::now()).unwrap();
    for _ in 0..3 {
        queue.push(propose(TURN_BYTES_MAX / 2)).unwrap();
    }
    queue.take_more(&mut turn);
    assert_eq!(turn.len(), 2, "the second one reaches the bound");
    assert_eq!(queue.take(Instant::now()).unwrap().len(), 2);
    assert_eq!(queue.state.lock().bytes, 0);
}

#[test]
fn what_comes_during_a_visit_is_the_threads() {
    let fixture = Fixture::new(|queue| queue.push(read(RaftGroupId(2))).unwrap());
    let taking = fixture.sleeper(NEVER);
    fixture.queue.push(read(RaftGroupId(1))).unwrap();
    assert_eq!(taking.join().unwrap(), Some(vec![2]));
    assert_eq!(fixture.visits.try_iter().map(|(_, items)| items).collect::<Vec<_>>(), [[1]]);
}

#[test]
fn what_needs_files_is_the_threads() {
    let fixture = Fixture::new(|_| ());
    let taking = fixture.sleeper(NEVER);
    fixture.queue.push_always(heavy(RaftGroupId(1))).unwrap();
    assert_eq!(taking.join().unwrap(), Some(vec![1]));
    assert_eq!(fixture.visits.try_iter().count(), 0);
}

#[test]
fn a_tick_that_falls_due_during_a_visit_comes_behind_it() {
    let (entered, inside) = mpsc::channel();
    let (leave, left) = mpsc::channel();
    let fixture = Fixture::new(move |_| {
        entered.send(()).unwrap();
        left.recv().unwrap();
    });
    let mut until = Duration::from_millis(20);
    let (taking, visitor) = loop {
        let taking = fixture.sleeper(until);
        let queue = Arc::clone(&fixture.queue);
        let visitor = thread::spawn(move || queue.push(read(RaftGroupId(1))));
        while !visitor.is_finished() && inside.try_recv().is_err() {
            thread::yield_now();
        }
        if !visitor.is_finished() {
            break (taking, visitor);
        }
        // The tick came before the visitor did: on a slow machine it must be later.
        assert_eq!(
            taking
                .join()
                .unwrap()
                .into_iter()
                .chain(fixture.queue.take(Instant::now()).map(|i| groups(&i)))
                .flatten()
                .count(),
            1
        );
        until *= 4;
    };
    while !fixture.queue.state.lock().wanted {
        thread::yield_now();
    }
    assert!(!taking.is_finished(), "the visitor drives");
    leave.send(()).unwrap();
    visitor.join().unwrap().unwrap();
    assert_eq!(taking.join().unwrap(), Some(vec![]));
}

#[test]
fn a_tick_comes_though_nobody_does() {
    let fixture = Fixture::new(|_| ());
    assert_eq!(fixture.queue.take(Instant::now() + Duration::from_millis(1)).map(|items| items.len()), Some(0));
}

#[test]
fn bounds_hold_and_a_closed_queue_takes_nothing() {
    let queue = Queue::new(3 * ITEM_COST_BYTES, 2);
    queue.push(read(RaftGroupId(1))).unwrap();
    queue.push(read(RaftGroupId(2))).unwrap();
    assert_eq!(queue.push(read(RaftGroupId(3))), Err(Refused::Full));
    queue.push_always(heavy(RaftGroupId(4))).unwrap();
    assert_eq!(queue.take(Instant::now()).map(|items| groups(&items)), Some(vec![1, 2, 4]));
    queue.close();
    assert_eq!(queue.push(read(RaftGroupId(5))), Err(Refused::Closed));
    assert_eq!(queue.push_always(heavy(RaftGroupId(6))), Err(Refused::Closed));
}
