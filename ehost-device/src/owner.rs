//! Whose a NIC is, and whether it may be taken.

use cni::plugin::Add;
use cni::{Args, Code, Error};
use ledger::{Lease, Ledger, Node, Owner, Pod, Stage, Whereabouts};
use linux::Netns;
use nic::Link;

use crate::code::{self, ALREADY_ATTACHED, LIFELINE};
use crate::config::Insistence;

/// What is to be done about a lease that stands in the way of an ADD.
#[derive(Debug)]
pub(crate) enum Standing {
    /// Nobody has the NIC any more: bring it home, then go on.
    Stale,
    /// It is in use, and the ADD is refused.
    InUse(Error),
    /// It is in use, and the ADD refused, if it may be hidden ([`ledger::is_hidden`]); otherwise nobody has it.
    InUseIfHidden(Error),
}

/// Judges a lease. The caller holds the device's lock, so a lease that is not `Plumbed` is what a dead process left.
pub(crate) fn judge(lease: &Lease, whereabouts: &Whereabouts, wanted: &Owner) -> Standing {
    let device = &lease.device;
    match (&lease.stage, whereabouts) {
        (Stage::Plumbed { .. }, Whereabouts::WithOwner)
            if lease.is_for(&wanted.container_id, &wanted.if_name) =>
        {
            let message = format!("device {device} is already attached to {}", lease.owner);
            Standing::InUse(Error::new(ALREADY_ATTACHED, message))
        }
        (Stage::Plumbed { .. }, Whereabouts::WithOwner) => {
            let message = format!("device {device} is in use by {}", lease.owner);
            let details = format!(
                "its lease is for network {} and namespace {}; a DEL for that container frees it",
                lease.owner.network,
                lease.owner.netns.display()
            );
            Standing::InUse(Error::new(Code::TRY_AGAIN, message).with_details(details))
        }
        (Stage::Plumbed { .. }, Whereabouts::Unknown) => {
            let message = format!("device {device} is in use by {}", lease.owner);
            let details = format!(
                "it is not to be seen in namespace {}, but that is there, and the NIC may be in one below it; a DEL for that container frees it",
                lease.owner.netns.display()
            );
            Standing::InUseIfHidden(Error::new(Code::TRY_AGAIN, message).with_details(details))
        }
        (Stage::Plumbed { .. }, Whereabouts::OnNode(_))
        | (Stage::Prepared | Stage::Returning { .. } | Stage::Displaced { .. }, _) => Standing::Stale,
    }
}

/// The node, with what its agent knows as vital: addresses of the node, and of its API servers.
///
/// # Errors
/// No /proc, or no socket.
pub(crate) fn node(ledger: &Ledger) -> Result<Node, linux::Error> {
    let mut node = Node::here()?;
    if let Err(error) = node.heed(ledger.notes()) {
        // The agent writes it anew.
        cni::tell!("ehost-device: {}: going by what the kernel shows", code::ledger(error));
    }
    Ok(node)
}

/// Refuses a NIC that carries the node's own traffic.
///
/// # Errors
/// Code 101 with the reason; 5 when routes cannot be read: then no NIC is safe to take.
pub(crate) fn spare_the_lifeline(node: &mut Node, link: &Link, insistence: Insistence) -> Result<(), Error> {
    let lifeline = node.lifeline().map_err(|error| {
        let code = if matches!(error, linux::Error::Unsteady { .. }) { Code::TRY_AGAIN } else { Code::IO };
        Error::new(code, "find out what carries the node").caused_by(&error)
    })?;
    let Some(reason) = lifeline.reason(link.index) else { return Ok(()) };
    let message = format!("{} carries the node itself and is never moved", link.name);
    let details = format!("{} {reason}", link.name);
    insistence.weigh(Error::new(LIFELINE, message).with_details(details))
}

/// The owner that an ADD speaks for.
///
/// # Errors
/// Code 4 when CNI_ARGS speak of a pod and do not name it: whose the NIC would be could not be found out.
pub(crate) fn owner(add: &Add, netns: &Netns) -> Result<Owner, Error> {
    Ok(Owner {
        container_id: add.container_id.as_str().to_owned(),
        if_name: add.if_name.clone(),
        netns: add.netns.clone(),
        netns_inode: Some(netns.identity().1),
        network: add.config.name().as_str().to_owned(),
        pod: pod(&add.environment.args)?,
    })
}

fn pod(args: &Args) -> Result<Option<Pod>, Error> {
    let value = |key| args.value(key).filter(|value| !value.is_empty()).map(str::to_owned);
    match (value("K8S_POD_NAMESPACE"), value("K8S_POD_NAME")) {
        (Some(namespace), Some(name)) => Ok(Some(Pod { namespace, name, uid: value("K8S_POD_UID") })),
        _ if args.pairs().any(|(key, _)| key.starts_with("K8S_POD_")) => {
            let message =
                "CNI_ARGS: K8S_POD_NAMESPACE and K8S_POD_NAME must both be there, or nothing of K8S_POD_*";
            Err(Error::new(Code::INVALID_ENVIRONMENT, message))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ledger::Home;

    fn owner(container: &str) -> Owner {
        Owner {
            container_id: container.to_owned(),
            if_name: "net1".parse().unwrap(),
            netns: "/run/netns/x".into(),
            netns_inode: None,
            network: "n".to_owned(),
            pod: Some(Pod { namespace: "default".into(), name: "testpod1".into(), uid: None }),
        }
    }

    fn lease(stage: Stage) -> Lease {
        Lease {
            device: "0000:00:0a.0".parse().unwrap(),
            permanent_mac: None,
            boot_id: String::new(),
            home: Home {
                name: "eth1".parse().unwrap(),
                index: 3,
                alt_names: Vec::new(),
                alias: None,
                mac: None,
                mtu: 1500,
                tx_queue_len: 1000,
                up: false,
                flags: nic::Link::MULTICAST,
                master: None,
                xdp: Vec::new(),
                tcx: None,
                channels: None,
                rings: None,
                offloads: None,
                settings: std::collections::BTreeMap::new(),
                addresses: Vec::new(),
                routes: Vec::new(),
            },
            owner: owner("one"),
            stage,
        }
    }

    #[test]
    fn a_pod_is_named_whole_or_not_at_all() {
        let read = |args: &str| pod(&Args::new(args));
        assert_eq!(read("IgnoreUnknown=1;X=K8S_POD_NAME").unwrap(), None);
        let named = read("K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=").unwrap().unwrap();
        assert_eq!((named.namespace.as_str(), named.name.as_str(), named.uid), ("a", "b", None));
        for half in
            ["K8S_POD_NAMESPACE=a", "K8S_POD_NAME=b;K8S_POD_NAMESPACE=", "K8S_POD_UID=u", "K8S_POD_NAME="]
        {
            assert_eq!(read(half).unwrap_err().code, Code::INVALID_ENVIRONMENT, "{half}");
        }
    }

    #[test]
    fn only_a_completed_lease_whose_nic_is_with_its_owner_stands() {
        let judged = |stage, place, container| judge(&lease(stage), &place, &owner(container));
        let plumbed = || Stage::Plumbed { index: 3 };
        let Standing::InUse(same) = judged(plumbed(), Whereabouts::WithOwner, "one") else { panic!() };
        assert_eq!(same.code, ALREADY_ATTACHED);
        let Standing::InUse(other) = judged(plumbed(), Whereabouts::WithOwner, "two") else { panic!() };
        assert_eq!(other.code, Code::TRY_AGAIN);
        assert!(other.message.contains("pod default/testpod1"), "{other}");
        for container in ["one", "two"] {
            let hidden = judged(plumbed(), Whereabouts::Unknown, container);
            assert!(matches!(hidden, Standing::InUseIfHidden(error) if error.code == Code::TRY_AGAIN));
        }
        for (stage, place) in [
            (Stage::Prepared, Whereabouts::Unknown),
            (Stage::Prepared, Whereabouts::WithOwner),
            (Stage::Returning { fault: None }, Whereabouts::WithOwner),
            (Stage::Displaced { name: "eth1-2".parse().unwrap(), whole: false }, Whereabouts::Unknown),
        ] {
            assert!(matches!(judged(stage, place, "two"), Standing::Stale));
        }
    }
}
