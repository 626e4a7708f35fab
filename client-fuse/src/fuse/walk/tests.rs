use super::super::listing::directory_of_no_attributes;
use super::*;

const THREAD: u32 = 41;
const ROOT: u64 = 1;

fn directory(inode: u64) -> Attributes {
    Attributes { mode: 0o755, ..directory_of_no_attributes(inode.into()) }
}

/// A thread that walks a tree: directory 10 n + i is `i` in directory n. Every question that has to be asked is counted.
struct Walker {
    walks: Arc<Walks>,
    thread: u32,
    now: Instant,
    asked: Vec<String>,
}

impl Walker {
    fn new() -> Self {
        Self { walks: Arc::default(), thread: THREAD, now: Instant::now(), asked: Vec::new() }
    }

    fn attributes(&mut self, inode: u64) -> Attributes {
        match self.walks.attributes(self.thread, inode.into(), self.now, || None) {
            Answer::Known(attributes) => attributes,
            Answer::Ask(_, names) if names.is_empty() => {
                self.asked.push(format!("getattr {inode}"));
                directory(inode)
            }
            Answer::Ask(asking, names) => {
                self.asked.push(format!("walk {inode} {}", String::from_utf8(names.join(&b'/')).unwrap()));
                let mut at = inode;
                let directories: Vec<_> = names.iter().map_while(|name| step(&mut at, name)).collect();
                self.walks.walked(asking, inode.into(), names, &directories);
                directory(inode)
            }
        }
    }

    fn entry(&mut self, parent: u64, name: &str) -> Option<Attributes> {
        let name = Bytes::copy_from_slice(name.as_bytes());
        match self.walks.entry(self.thread, parent.into(), &name, self.now) {
            Answer::Known(attributes) => Some(attributes),
            Answer::Ask(asking, names) => {
                assert!(names.is_empty());
                self.asked.push(format!("lookup {parent} {}", String::from_utf8_lossy(&name)));
                let mut at = parent;
                let found = step(&mut at, &name)?;
                self.walks.found(asking, parent.into(), &name, &found);
                Some(found)
            }
        }
    }

    /// Asks the questions of a stat(2); the names that exist are digits.
    fn stat(&mut self, start: u64, path: &str) {
        let mut at = start;
        for name in path.split('/') {
            assert_eq!(self.attributes(at).inode, at.into());
            let Some(found) = self.entry(at, name) else { return };
            at = found.inode.0;
        }
        self.attributes(at);
    }

    fn asked(&mut self) -> Vec<String> {
        std::mem::take(&mut self.asked)
    }
}

fn step(at: &mut u64, name: &[u8]) -> Option<Attributes> {
    let digit = std::str::from_utf8(name).ok()?.parse::<u64>().ok()?;
    *at = *at * 10 + digit;
    Some(directory(*at))
}

#[test]
fn a_way_gone_before_is_asked_for_at_once() {
    let mut walker = Walker::new();
    walker.stat(ROOT, "1/2/new");
    assert_eq!(walker.asked(), ["getattr 1", "lookup 1 1", "lookup 11 2", "lookup 112 new"]);
    for _ in 0..3 {
        walker.stat(ROOT, "1/2/new");
        assert_eq!(walker.asked(), ["walk 1 1/2", "lookup 112 new"]);
    }
}

#[test]
fn a_way_that_turns_off_is_asked_for_from_there() {
    let mut walker = Walker::new();
    walker.stat(ROOT, "1/2/3");
    walker.asked();
    walker.stat(ROOT, "1/7/8");
    assert_eq!(walker.asked(), ["walk 1 1/2/3", "lookup 11 7", "lookup 117 8"]);
    walker.stat(ROOT, "1/7/8");
    assert_eq!(walker.asked(), ["walk 1 1/7/8"]);
}

#[test]
fn a_part_of_a_known_way_does_not_shorten_it() {
    let mut walker = Walker::new();
    walker.stat(ROOT, "1/2/3");
    walker.stat(ROOT, "1");
    walker.asked();
    walker.stat(ROOT, "1/2/3");
    assert_eq!(walker.asked(), ["walk 1 1/2/3"]);
}

#[test]
fn walks_from_several_directories_are_remembered_apart() {
    let mut walker = Walker::new();
    for round in 0..2 {
        walker.stat(ROOT, "1/2");
        walker.stat(11, "5/6");
        assert_eq!(walker.asked().len(), if round == 0 { 6 } else { 2 });
    }
    // The oldest gives way.
    for start in 20..24 {
        walker.stat(start, "1");
    }
    walker.asked();
    walker.stat(ROOT, "1/2");
    assert_eq!(walker.asked()[0], "getattr 1");
}

#[test]
fn an_answer_is_given_once_and_only_in_turn() {
    let mut walker = Walker::new();
    walker.stat(ROOT, "1/2");
    walker.asked();
    walker.attributes(ROOT);
    walker.entry(ROOT, "1");
    walker.attributes(11);
    walker.attributes(11);
    assert_eq!(walker.asked(), ["walk 1 1/2", "getattr 11"], "the second one is another system call's");
    walker.entry(11, "2");
    assert_eq!(walker.asked(), ["lookup 11 2"], "what was expected before is forgotten");
}

#[test]
fn anything_else_ends_a_walk() {
    let mut walker = Walker::new();
    walker.stat(ROOT, "1/2");
    walker.asked();
    walker.attributes(ROOT);
    walker.entry(ROOT, "1");
    walker.walks.end(THREAD);
    walker.attributes(11);
    assert_eq!(walker.asked(), ["walk 1 1/2", "getattr 11"]);
}

#[test]
fn answers_grow_old() {
    let mut walker = Walker::new();
    walker.stat(ROOT, "1/2");
    walker.asked();
    walker.attributes(ROOT);
    walker.now += ANSWER_AGE_MAX;
    walker.entry(ROOT, "1");
    walker.now += Duration::from_nanos(1);
    walker.attributes(11);
    walker.entry(11, "2");
    assert_eq!(walker.asked(), ["walk 1 1/2", "getattr 11", "lookup 11 2"]);
}

#[test]
fn a_change_under_way_or_ended_takes_back_every_answer() {
    for ends_between in [false, true] {
        let mut walker = Walker::new();
        walker.stat(ROOT, "1/2");
        walker.asked();
        let change = ends_between.then(|| walker.walks.change());
        walker.attributes(ROOT);
        let change = change.or_else(|| Some(walker.walks.change()));
        if ends_between {
            drop(change);
        }
        walker.entry(ROOT, "1");
        assert_eq!(walker.asked(), ["walk 1 1/2", "lookup 1 1"], "{ends_between}");
    }
}

#[test]
fn nobody_is_told_of_a_former_owner_after_another_was_told_of_the_new_one() {
    let others = [
        Attributes { uid: 7, ..directory(11) },
        Attributes { gid: 7, ..directory(11) },
        Attributes { mode: 0, ..directory(11) },
    ];
    for other in others {
        let mut walker = Walker::new();
        walker.stat(ROOT, "1/2");
        walker.asked();
        walker.attributes(ROOT);
        walker.walks.seen(&directory(11));
        walker.walks.seen(&other);
        walker.entry(ROOT, "1");
        assert_eq!(walker.asked(), ["walk 1 1/2", "lookup 1 1"], "the walk's answer is the older one");
        // The other way round: what a walk brings late is not told either.
        walker.walks.end(THREAD);
        let Answer::Ask(asking, names) = walker.walks.attributes(THREAD, ROOT.into(), walker.now, || None) else {
            panic!()
        };
        walker.walks.seen(&other);
        walker.walks.walked(asking, ROOT.into(), names, &[directory(11), directory(112)]);
        walker.entry(ROOT, "1");
        assert_eq!(walker.asked(), ["lookup 1 1"]);
    }
}

#[test]
fn what_an_unknown_thread_is_told_counts_too() {
    let mut walker = Walker::new();
    walker.stat(ROOT, "1/2");
    walker.attributes(ROOT);
    walker.asked();
    let name = Bytes::from_static(b"1");
    let Answer::Ask(asking, _) = walker.walks.entry(UNKNOWN_THREAD, ROOT.into(), &name, walker.now) else { panic!() };
    walker.walks.found(asking, ROOT.into(), &name, &Attributes { uid: 7, ..directory(11) });
    walker.entry(ROOT, "1");
    assert_eq!(walker.asked(), ["lookup 1 1"]);
}

#[test]
fn when_directories_are_forgotten_their_answers_are_too() {
    let mut walker = Walker::new();
    walker.stat(ROOT, "1/2");
    walker.asked();
    walker.attributes(ROOT);
    for inode in 0..DIRECTORIES_MAX as u64 {
        walker.walks.seen(&directory(1_000_000 + inode));
    }
    assert!(walker.walks.state.lock().seen.len() <= DIRECTORIES_MAX);
    walker.entry(ROOT, "1");
    assert_eq!(walker.asked(), ["walk 1 1/2", "lookup 1 1"]);
}

#[test]
fn threads_do_not_answer_each_other_and_unknown_ones_always_ask() {
    let mut walker = Walker::new();
    walker.stat(ROOT, "1/2");
    walker.attributes(ROOT);
    walker.asked();
    walker.thread += 1;
    walker.entry(ROOT, "1");
    walker.attributes(11);
    assert_eq!(walker.asked(), ["lookup 1 1"]);
    walker.thread = UNKNOWN_THREAD;
    for _ in 0..2 {
        walker.stat(ROOT, "1");
        assert_eq!(walker.asked(), ["getattr 1", "lookup 1 1", "getattr 11"]);
    }
}

#[test]
fn files_are_always_asked_for() {
    let mut walker = Walker::new();
    walker.attributes(ROOT);
    let name = Bytes::from_static(b"file");
    let Answer::Ask(asking, _) = walker.walks.entry(THREAD, ROOT.into(), &name, walker.now) else { panic!() };
    let file = Attributes { kind: NodeKind::File, ..directory(77) };
    walker.walks.found(asking, ROOT.into(), &name, &file);
    walker.attributes(77);
    assert_eq!(walker.asked(), ["getattr 1", "getattr 77"]);
}

#[test]
fn what_is_remembered_is_bounded() {
    let mut walker = Walker::new();
    let long = vec!["1"; WALK_NAMES_MAX + 2].join("/");
    for thread in 1..=u32::try_from(THREADS_MAX).unwrap() + 5 {
        walker.thread = thread;
        walker.stat(ROOT, &long);
    }
    assert!(walker.walks.state.lock().threads.len() <= THREADS_MAX);
    walker.asked();
    walker.attributes(ROOT);
    walker.walks.end(walker.thread);
    let state = walker.walks.state.lock();
    assert!(state.threads[&walker.thread].known[0].steps.len() <= WALK_NAMES_MAX);
}

#[test]
fn a_file_just_made_is_known_to_the_next_question_of_its_maker() {
    let file = InodeId(77);
    let made = || {
        let mut walker = Walker::new();
        walker.stat(ROOT, "1/x");
        walker.walks.end(THREAD);
        walker.walks.made(walker.walks.asking(THREAD, walker.now), file);
        walker
    };
    let knows = |walker: &Walker, thread, file: InodeId, now| {
        let created = Attributes { kind: NodeKind::File, ..directory(file.0) };
        walker.walks.attributes(thread, file, now, || Some(created)) == Answer::Known(created)
    };

    let walker = made();
    assert!(knows(&walker, THREAD, file, walker.now + ANSWER_AGE_MAX));
    assert!(!knows(&walker, THREAD, file, walker.now), "asked again it is another system call");

    let walker = made();
    assert!(!knows(&walker, THREAD + 1, file, walker.now), "another thread's");
    assert!(!knows(&walker, THREAD, InodeId(78), walker.now), "another file");
    assert!(!knows(&walker, THREAD, file, walker.now), "the one question was about another file");

    let walker = made();
    assert!(!knows(&walker, THREAD, file, walker.now + ANSWER_AGE_MAX + Duration::from_micros(1)), "long ago");

    let mut walker = made();
    walker.entry(ROOT, "2");
    assert!(!knows(&walker, THREAD, file, walker.now), "looked something up since");

    let walker = made();
    walker.walks.end(THREAD);
    assert!(!knows(&walker, THREAD, file, walker.now), "did something else since");

    let walker = made();
    drop(walker.walks.change());
    assert!(!knows(&walker, THREAD, file, walker.now), "something was changed since");

    let walker = made();
    walker.walks.made(walker.walks.asking(UNKNOWN_THREAD, walker.now), file);
    assert!(!knows(&walker, UNKNOWN_THREAD, file, walker.now), "nobody knows whose");
}
