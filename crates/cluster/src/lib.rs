//! Pods and NetworkAttachmentDefinitions as a meta plugin reads them, and what it tells about a pod's networks.
//!
//! What pods' authors and cluster users write is untrusted: it is bounded, and parsed before it is used.
//! <https://github.com/k8snetworkplumbingwg/multi-net-spec>

mod definition;
#[cfg(feature = "event")]
pub mod event;
#[cfg(feature = "get")]
pub mod get;
mod label;
mod object;
mod selection;
mod status;

pub use definition::{DefinitionError, NetworkAttachmentDefinition, RESOURCE_NAME};
pub use label::{Label, LabelError};
pub use object::{Metadata, Pod};
pub use selection::{FaultyItem, NETWORKS, Selection, SelectionError, selections};
pub use status::{DnsStatus, NETWORK_STATUS, NetworkStatus};
