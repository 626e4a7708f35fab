//! End-to-end tests: the cluster harness, POSIX, faults.
