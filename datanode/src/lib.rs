//! The shard store and its server.

pub mod store;
mod units;
