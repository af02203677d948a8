//! The `virtsim` program.

fn main() {}
