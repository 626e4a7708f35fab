//! A library to preload into a process under test, for power failures that nobody has to wait for: see
//! `holdfast_tests::forgetful`. It defines the C library's calls that change files, writes down what they are about to
//! change below the watched directory, and makes the system call itself; everything else passes through untouched.
//!
//! A call on a watched file that it does not model (a shared writable mapping, say) ends the process: a hole in
//! the net is a failed test.

mod calls;
mod watch;
