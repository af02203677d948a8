//! What host and guest of the test VM agree on: the frames of the command agent, the index of kernel modules, and the
//! words that init reads from the kernel's command line.

pub mod boot;
pub mod modules;
pub mod protocol;
