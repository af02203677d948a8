//! A Kubernetes node without Kubernetes, as a library.
