//! Workloads against a mounted directory, peers side by side.

fn main() {}
