//! The meta CNI plugin: cluster network first, then the networks a pod asks for.

fn main() {}
