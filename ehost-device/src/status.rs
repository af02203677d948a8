//! STATUS: could an ADD succeed here?

use cni::plugin::Status;
use cni::{Code, Error};
use ledger::Node;
use linux::Netns;

use crate::config::Surroundings;
use crate::log::Steps;

/// The first kernel that names the device behind an interface (IFLA_PARENT_DEV_NAME), by which NICs are known wherever they are.
const OLDEST_KERNEL: (u32, u32) = (5, 14);

/// Looks at what every ADD needs: the kernel's answers, the right to move interfaces and to enter a pod's network namespace, a ledger
/// that can be written, and IPAM.
///
/// # Errors
/// Code 50 with the reason; IPAM's own.
pub(crate) fn status(status: &Status, steps: &mut Steps) -> Result<(), Error> {
    let surroundings = Surroundings::read(&status.config)?;
    linux::kernel_version()
        .map_err(|error| unavailable("the kernel's version cannot be read", &error))
        .and_then(kernel)?;
    rights()?;
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

fn kernel(found: (u32, u32)) -> Result<(), Error> {
    if found >= OLDEST_KERNEL {
        return Ok(());
    }
    let ((major, minor), (oldest_major, oldest_minor)) = (found, OLDEST_KERNEL);
    let message = format!(
        "Linux {major}.{minor} does not name the devices of its NICs; {oldest_major}.{oldest_minor} does"
    );
    Err(Error::new(Code::UNAVAILABLE, message))
}

fn rights() -> Result<(), Error> {
    let may = linux::process::may_change_network()
        .map_err(|error| unavailable("the kernel does not say what this process may do", &error))?;
    if !may {
        return Err(Error::new(Code::UNAVAILABLE, "no NIC can be moved: CAP_NET_ADMIN is missing"));
    }
    // A pod's is entered in the same way.
    Netns::create()
        .and_then(|netns| netns.route_socket())
        .map(drop)
        .map_err(|error| unavailable("no network namespace can be entered", &error))
}

fn unavailable(what: &str, error: &(dyn std::error::Error + 'static)) -> Error {
    Error::new(Code::UNAVAILABLE, what).caused_by(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_does_not_name_devices_is_too_old() {
        for good in [(5, 14), (5, 15), (6, 1), linux::kernel_version().unwrap()] {
            kernel(good).unwrap();
        }
        for old in [(5, 13), (4, 19)] {
            assert_eq!(kernel(old).unwrap_err().code, Code::UNAVAILABLE);
        }
        let words = "Linux 5.10 does not name the devices of its NICs; 5.14 does";
        assert_eq!(kernel((5, 10)).unwrap_err().message, words);
    }
}
