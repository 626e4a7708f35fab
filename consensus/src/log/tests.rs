//! The log over a simulated disk.
