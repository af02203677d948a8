//! A Kubernetes node without Kubernetes, as a library.

pub mod api;
pub mod cli;
pub mod client;
pub mod control;
pub mod kubelet;
pub mod manifest;
pub mod node;
pub mod options;
pub mod runtime;

/// An error with all its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
