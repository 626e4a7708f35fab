//! The client without FUSE, against the real metadata table and disks that are maps, in virtual time.

#![allow(clippy::unwrap_used)] // Helpers of tests, too, end the test when something is not as it must be.
mod budgets;
mod cluster;
mod interruptions;
mod random;
mod scenarios;
mod sessions;
mod sharing;
mod trouble;
