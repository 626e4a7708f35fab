//! The shard store and its server.
