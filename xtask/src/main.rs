//! The project's commands: demo, test, vm, bench, gen.

fn main() {}
