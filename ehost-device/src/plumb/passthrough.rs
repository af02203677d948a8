//! A NIC that vfio-pci holds: a program in the pod drives it, and the kernel has no interface that could be moved, named or given
//! addresses. It gets addresses from IPAM, for that program to use, and the result has an interface without MAC and MTU.
//!
//! There is no lease, since there is nothing to bring home; the kubelet sees to it that nobody else has the device.

use cni::plugin::Add;
use cni::{Code, Error, Interface, Success};
use nic::{DeviceId, VFIO_PCI};

use crate::code;
use crate::config::Settings;

/// Asks IPAM, and that is all.
///
/// # Errors
/// Code 2 when the configuration asks something of the interface; IPAM's own.
pub(super) fn add(add: &Add, settings: &Settings, device: &DeviceId) -> Result<Success, Error> {
    let wishes = settings.interface.wishes();
    if !wishes.is_empty() {
        let message = format!("{}: device {device} has no interface for it", wishes.join(", "));
        let details = format!("its driver is {VFIO_PCI}: a program in the pod drives it");
        return Err(Error::new(Code::UNSUPPORTED_FIELD, message).with_details(details));
    }
    cni::tell!("ehost-device: device {device} is driven by {VFIO_PCI}: it gets addresses, and no interface");
    let plugins = settings.surroundings.plugins(&add.environment.path);
    let ipam = plugins.ipam_add(&add.config, &add.environment)?;
    if ipam.as_ref().is_some_and(|ipam| ipam.ips.is_empty()) {
        let error = Error::new(code::NO_ADDRESS, "the IPAM plugin gave no address");
        return Err(match plugins.ipam_del(&add.config, &add.environment) {
            Ok(()) => error,
            Err(further) => error.and_also("the addresses could not be given back", &further),
        });
    }
    let ipam = ipam.unwrap_or_default();
    let interface = Interface {
        name: add.if_name.to_string(),
        sandbox: Some(add.netns.display().to_string()),
        pci_id: device.pci().map(|pci| pci.to_string()),
        ..Interface::default()
    };
    let ips = ipam.ips.into_iter().map(|ip| cni::Ip { interface: Some(0), ..ip }).collect();
    Ok(Success { interfaces: vec![interface], ips, routes: ipam.routes, dns: ipam.dns })
}
