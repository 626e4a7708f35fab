//! The one binary of Holdfast: every role, up, administration and user commands.

fn main() {}
