//! Which of the pod's networks gets which of the pod's devices: a pure decision.

use std::collections::BTreeMap;

use cni::{Code, Error};
use kubelet_api::podresources::PodResources;
use nic::{DeviceId, ResourceName};

use crate::code;

/// A network of the pod and the resource that it needs a device of.
pub(crate) struct Need<'a> {
    pub(crate) network: &'a str,
    pub(crate) resource: Option<&'a ResourceName>,
}

/// Gives each network that needs one a device, in the order of the networks and of the pod's containers. No device is
/// given twice, also if two containers share it. There being too few is an error: a pod without its NIC must not start.
pub(crate) fn assign(needs: &[Need<'_>], given: &PodResources) -> Result<Vec<Option<DeviceId>>, Error> {
    let mut left: BTreeMap<&ResourceName, std::vec::IntoIter<&str>> = BTreeMap::new();
    let mut assigned = Vec::new();
    for need in needs {
        let Some(resource) = need.resource else {
            assigned.push(None);
            continue;
        };
        let devices = left.entry(resource).or_insert_with(|| once_each(given, resource).into_iter());
        let Some(id) = devices.next() else {
            let held = once_each(given, resource).len();
            let message = format!(
                "network {} needs a device of resource {resource}, and the kubelet gave the pod {}",
                need.network,
                if held == 0 { "none".to_owned() } else { format!("{held} only, which other networks have") },
            );
            return Err(Error::new(code::TOO_FEW_DEVICES, message).with_details(
                "a container of the pod must request as many of the resource as the pod has such networks",
            ));
        };
        let id = id.parse().map_err(|error: nic::NameError| {
            let message = format!("the kubelet named a device of resource {resource} that is none");
            Error::new(Code::DECODE, message).caused_by(&error)
        })?;
        assigned.push(Some(id));
    }
    Ok(assigned)
}

/// The pod's devices of a resource, container by container. Init containers share theirs with ordinary ones.
fn once_each<'a>(given: &'a PodResources, resource: &'a ResourceName) -> Vec<&'a str> {
    let mut devices: Vec<&str> = Vec::new();
    for id in given.devices_of(resource.as_str()) {
        if !devices.contains(&id) {
            devices.push(id);
        }
    }
    devices
}

#[cfg(test)]
// The kubelet's messages grow fields; those that are not known here keep their defaults.
#[allow(clippy::needless_update)]
mod tests {
    use super::*;
    use kubelet_api::podresources::{ContainerDevices, ContainerResources};

    fn pod(containers: &[&[(&str, &[&str])]]) -> PodResources {
        let devices = |(resource, ids): &(&str, &[&str])| ContainerDevices {
            resource_name: (*resource).to_owned(),
            device_ids: ids.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        PodResources {
            containers: containers
                .iter()
                .map(|list| ContainerResources {
                    devices: list.iter().map(devices).collect(),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    fn assigned(resources: &[Option<&str>], pod: &PodResources) -> Result<Vec<Option<String>>, Error> {
        let resources: Vec<Option<ResourceName>> =
            resources.iter().map(|name| name.map(|name| name.parse().unwrap())).collect();
        let needs: Vec<Need<'_>> =
            resources.iter().map(|resource| Need { network: "n", resource: resource.as_ref() }).collect();
        Ok(assign(&needs, pod)?.into_iter().map(|id| id.map(|id| id.to_string())).collect())
    }

    #[test]
    fn devices_are_taken_in_order_and_never_twice() {
        let pod = pod(&[&[("a.io/x", &["d1", "d2"]), ("a.io/y", &["e1"])], &[("a.io/x", &["d2", "d3"])]]);
        let given = assigned(&[Some("a.io/x"), None, Some("a.io/y"), Some("a.io/x"), Some("a.io/x")], &pod);
        let text = |id: &str| Some(id.to_owned());
        assert_eq!(given.unwrap(), [text("d1"), None, text("e1"), text("d2"), text("d3")]);
    }

    #[test]
    fn too_few_devices_are_an_error_that_names_network_and_resource() {
        let few = pod(&[&[("a.io/x", &["d1"])]]);
        let error = assigned(&[Some("a.io/x"), Some("a.io/x")], &few).unwrap_err();
        assert_eq!(error.code, code::TOO_FEW_DEVICES);
        insta::assert_snapshot!(error.message, @"network n needs a device of resource a.io/x, and the kubelet gave the pod 1 only, which other networks have");
        insta::assert_snapshot!(assigned(&[Some("a.io/z")], &few).unwrap_err().message, @"network n needs a device of resource a.io/z, and the kubelet gave the pod none");
        let odd = pod(&[&[("a.io/x", &["../d"])]]);
        assert_eq!(assigned(&[Some("a.io/x")], &odd).unwrap_err().code, Code::DECODE);
    }
}
