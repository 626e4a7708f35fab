//! Cluster membership, placement and volumes.
