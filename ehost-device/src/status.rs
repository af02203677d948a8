//! STATUS: could an ADD succeed here?

use cni::plugin::Status;
use cni::{Code, Error};
use ledger::Node;

use crate::config::Surroundings;
use crate::log::Steps;

/// Looks at what every ADD needs: the kernel's answers, a ledger that can be written, and IPAM.
///
/// # Errors
/// Code 50 with the reason; IPAM's own.
pub(crate) fn status(status: &Status, steps: &mut Steps) -> Result<(), Error> {
    let surroundings = Surroundings::read(&status.config)?;
    Node::here()
        .and_then(|mut node| node.routes.links())
        .map_err(|error| unavailable("the kernel's interfaces cannot be read", &error))?;
    surroundings
        .ledger
        .probe()
        .map_err(|error| unavailable("no lease could be written, so no NIC can be handed out", &error))?;
    steps.begin("ipam");
    surroundings.plugins(&status.environment.path).ipam_status(&status.config, &status.environment)
}

fn unavailable(what: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::new(Code::UNAVAILABLE, what).caused_by(error)
}
