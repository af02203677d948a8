//! The CNI specification 0.1.0 to 1.1.0: plugin side, runtime side, delegation.
