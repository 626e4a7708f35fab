//! Tests of the core by subject: sequences of inputs, and the effects that must come.

mod admission;
mod bench;
mod chunks;
mod flush;
mod operations;
mod random;
mod reading;
mod upkeep;
