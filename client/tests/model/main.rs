//! The client without FUSE, against the real metadata table and disks that are maps, in virtual time.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, end the test when something is not as it must be.
mod amiss;
mod budgets;
mod cluster;
mod groups;
mod interruptions;
mod names;
mod random;
mod scenarios;
mod sessions;
mod sharing;
mod trouble;

/// As when a step of the client's core panics: it is a task that had the answer, and the caller is never told.
#[test]
#[should_panic(expected = "a task has panicked")]
fn a_task_that_panics_ends_its_test_at_once() {
    cluster::in_virtual_time(async {
        drop(tokio::spawn(async { panic!("this is what the test is for") }));
        std::future::pending::<()>().await;
    });
}
