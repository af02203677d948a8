//! The API server: plain HTTP on the loopback, objects as JSON values, the verbs that clients use.
//!
//! From the inside out: [`store`] is plain data (with [`kinds`], [`patch`], [`selector`], validation and schemas as
//! pure functions); [`service`] is the one task that owns it, and tells of changes; [`rest`] is HTTP around that.
//! There is no authentication, no admission beyond validation, no etcd: what is here ends with the process.

mod discovery;
pub mod error;
pub mod json;
pub mod kinds;
pub(crate) mod log;
pub mod patch;
mod path;
mod protobuf;
pub mod quantity;
mod query;
pub mod rest;
mod schema;
pub mod selector;
pub mod service;
pub mod status;
pub mod store;
mod table;
pub mod time;
pub mod validate;
mod watch;

pub use error::Error;
pub use json::Json;
pub use service::Api;
