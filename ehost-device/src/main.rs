//! The CNI plugin that moves a NIC into a pod and brings it home.

fn main() {}
