//! raft-rs as a sans-IO core, the shared write-ahead log, snapshots, and the multi-group driver.
