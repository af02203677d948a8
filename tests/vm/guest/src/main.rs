//! What runs first inside the test VM: init and the command agent.

fn main() {}
