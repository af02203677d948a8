//! What a pod's networks came to: the annotation network-status.

use std::net::IpAddr;

use nic::{IfName, MacAddr};
use serde::{Deserialize, Serialize};

/// The annotation: a list of [`NetworkStatus`], the cluster's network first.
pub const NETWORK_STATUS: &str = "k8s.v1.cni.cncf.io/network-status";

/// One attachment of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct NetworkStatus {
    /// `namespace/name` of the network, or the name alone for the cluster's.
    pub name: String,
    /// The interface in the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<IfName>,
    /// Addresses without the length of the prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<IpAddr>,
    /// Its hardware address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Its MTU in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// Whether this is the cluster's network.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
    /// Name servers.
    #[serde(default)]
    pub dns: DnsStatus,
    /// What is known of the device (device-info specification).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_info: Option<serde_json::Value>,
    /// Gateways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gateway: Vec<IpAddr>,
}

/// Name servers of an attachment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsStatus {
    /// Addresses of name servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The local domain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// Domains to search.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options for the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_form_is_that_of_the_specification() {
        let status = NetworkStatus {
            name: "default/virt-net1".into(),
            interface: "net1".parse().ok(),
            ips: vec!["10.56.217.2".parse().unwrap()],
            mac: "52:54:00:c4:e6:cd".parse().ok(),
            mtu: Some(1500),
            default: false,
            dns: DnsStatus::default(),
            device_info: serde_json::from_str(r#"{"type":"pci"}"#).ok(),
            gateway: vec![],
        };
        insta::assert_snapshot!(serde_json::to_string(&status).unwrap(), @r#"{"name":"default/virt-net1","interface":"net1","ips":["10.56.217.2"],"mac":"52:54:00:c4:e6:cd","mtu":1500,"dns":{},"device-info":{"type":"pci"}}"#);
    }
}
