//! The node agent: discovers virtual NICs, advertises and allocates them.

fn main() {}
