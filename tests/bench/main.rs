//! Benchmarks of a whole fleet.

fn main() {}
