//! Whole-system tests in the VM.
