use std::path::Path;

use nic::{Demand, MacAddr};
use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Result<Config, String> {
    parse(text, Path::new("pools.yaml")).map_err(|fault| fault.to_string())
}

fn resources(config: &Config) -> Vec<&str> {
    config.pools.iter().map(|pool| pool.resource.as_str()).collect()
}

fn pool_of(text: &str) -> Pool {
    read(text).unwrap().pools.iter().next().unwrap().as_ref().clone()
}

#[test]
fn everything_that_can_be_said_is_understood() {
    let config = read(
        r#"
resourcePrefix: kernel.org
offerLifeline: ["0000:00:03.0"]
cdi: true
metadata: /media/config
resourceList:
- resourceName: fast
  excludeTopology: true
  additionalInfo:
    "*": {token: abc}
    "0000:00:0a.0": {side: left}
  selectors:
  - vendors: ["1af4", "0x15AD"]
    devices: ["1041"]
    drivers: [virtio_net]
    pciAddresses: ["0000:00:0a.0"]
    acpiIndexes: ["101", 102]
    rootDevices: ["0000:00:02.0"]
    linkTypes: [ether]
    names: ["eth*"]
    macs: ["52:54:00:C4:E6:CD"]
    mtus: [9000]
    queues: 4
    networkIds: [net-a]
    tags: [fast]
    needVhostNet: true
  - drivers: [vmxnet3]
    needTun: true
  exclude:
    names: [eth0]
- resourceName: rest
  resourcePrefix: example.com
  selectors: {drivers: [virtio_net]}
"#,
    )
    .unwrap();
    assert_eq!(resources(&config), ["kernel.org/fast", "example.com/rest"]);
    assert_eq!(config.notes, []);
    assert_eq!(config.metadata.as_deref(), Some(Path::new("/media/config")));
    assert_eq!(config.offer_lifeline.len(), 1);
    let fast = config.pools.iter().next().unwrap();
    assert!(fast.exclude_topology && fast.cdi);
    assert_eq!(fast.additional_info.len(), 2);
    assert_eq!(fast.selectors[0].demands.len(), 13);
    assert!(fast.selectors[0].needs.vhost_net && !fast.selectors[0].needs.tun && fast.selectors[1].needs.tun);
    assert_eq!(fast.selectors[0].demands[0], Demand::Vendors(vec![0x1af4, 0x15ad]));
    assert_eq!(fast.exclude[0].to_string(), "names eth0");
}

/// In the form of the examples of sriov-network-device-plugin's documentation, as ConfigMaps in the field have them.
const THEIRS: &[(&str, &[&str], usize)] = &[
    // One selector without a list; RDMA; names of physical functions.
    (
        r#"{"resourceList": [
            {"resourceName": "netdev", "selectors": {"vendors": ["8086"], "devices": ["154c", "10ed"], "drivers": ["iavf"]}},
            {"resourceName": "dpdk", "selectors": {"drivers": ["vfio-pci"], "pfNames": ["enp0s0f0", "enp2s2f1#0-3"]}},
            {"resourceName": "rdma", "selectors": {"vendors": ["15b3"], "isRdma": true}}]}"#,
        &["intel.com/netdev", "intel.com/dpdk", "intel.com/rdma"],
        2,
    ),
    // A VM with vfio, and commas where Go's own parser would not take them.
    (
        r#"{"resourceList": [{"resourceName": "downlink",
            "selectors": [{"drivers": ["vfio-pci"], "pciAddresses": ["0000:00:09.0", "0000:00:0a.0"],}],},]}"#,
        &["intel.com/downlink"],
        0,
    ),
    // Profiles, vDPA, several selectors with a prefix of their own.
    (
        r#"{"resourceList": [
            {"resourceName": "gtp", "resourcePrefix": "intel.com", "selectors": [{"ddpProfiles": ["GTPv1-C/U IPv4/IPv6 payload"]}]},
            {"resourceName": "vdpa", "selectors": [{"vendors": ["15b3"], "vdpaType": "vhost"}]},
            {"resourcePrefix": "dpdk.org", "resourceName": "nic",
             "selectors": [{"vendors": ["15b3"], "isRdma": true}, {"vendors": ["8086"], "needVhostNet": true}]}]}"#,
        &["intel.com/gtp", "intel.com/vdpa", "dpdk.org/nic"],
        3,
    ),
    // As its operator writes it for each node; keys in another case.
    (
        r#"{"resourceList":[{"resourceName":"sriovnics","selectors":{"pfNames":["ens785f0#0-4"],"IsRdma":false,"NeedVhostNet":false},"SelectorObj":null}]}"#,
        &["intel.com/sriovnics"],
        1,
    ),
    // Other kinds of devices, and what containers are told.
    (
        r#"{"resourceList": [
            {"resourceName": "fpga", "deviceType": "accelerator", "selectors": [{"devices": ["0d90"]}]},
            {"resourceName": "sf", "deviceType": "auxNetDevice", "selectors": [{"auxTypes": ["sf"]}]},
            {"resourceName": "told", "selectors": [{"drivers": ["iavf"], "linkTypes": ["ether"]}],
             "additionalInfo": {"*": {"token": "3e49019f"}}}]}"#,
        &["intel.com/told"],
        3,
    ),
];

#[test]
fn config_maps_of_sriov_network_device_plugin_are_read_and_what_selects_nothing_is_said() {
    for (text, names, notes) in THEIRS {
        let config = read(text).unwrap();
        assert_eq!(resources(&config), *names);
        assert_eq!(config.notes.len(), *notes, "{:#?}", config.notes);
    }
}

#[test]
fn what_no_nic_here_can_be_like_selects_nothing() {
    for demand in [
        "isRdma: true",
        "vdpaType: vhost",
        "pfNames: [a]",
        "ddpProfiles: [a]",
        "pKeys: [\"0x1\"]",
        "linkTypes: [infiniband]",
        "rootDevices: [\"0000:86:00.0#1-2\"]",
    ] {
        let pool =
            pool_of(&format!("resourceList: [{{resourceName: a, selectors: {{drivers: [x], {demand}}}}}]"));
        assert!(matches!(pool.selectors[0].demands[1], Demand::Nothing(_)), "{demand}");
    }
}

#[test]
fn each_fault_is_told_with_file_line_column_and_remedy() {
    let pool = |rest: &str| format!("resourceList:\n- resourceName: a\n{rest}");
    for (text, says) in [
        (String::new(), "pools.yaml: the file is empty: `resourceList` is missing"),
        ("resourcelists: []".into(), "pools.yaml:1:1: the file has no key `resourcelists`: did you mean `resourceList`?"),
        ("resourceList: {}".into(), "pools.yaml:1:1: `resourceList` must be a list of resources"),
        ("cdi: true".into(), "pools.yaml:1:1: `resourceList` is missing"),
        (pool("  selectors: {driver: [virtio_net]}"), "pools.yaml:3:15: a selector has no key `driver`: did you mean `drivers`?"),
        (pool("  selectors: {frobs: [x]}"), "pools.yaml:3:15: a selector has no key `frobs`: there are vendors,"),
        (pool("  selectors: {drivers: virtio_net}"), "pools.yaml:3:15: `drivers` is \"virtio_net\", but must be a list"),
        (pool("  selectors: {drivers: []}"), "pools.yaml:3:15: `drivers` is an empty list: name something"),
        (pool("  selectors: {drivers: }"), "pools.yaml:3:15: `drivers` is empty, but must be a list"),
        (pool("  selectors: {needVhostNet: true}"), "pools.yaml:3:3: this selector would select every NIC"),
        (pool("  selectors: []"), "pools.yaml:3:3: `selectors` is an empty list"),
        (pool("  excludeTopology: true"), "pools.yaml:2:3: `selectors` is missing"),
        (pool("  selectors: {vendors: [8086]}"), "pools.yaml:3:25: `vendors` has the number 8086, but must be text"),
        (pool("  selectors: {vendors: [\"808\"]}"), "pools.yaml:3:25: `vendors`: \"808\" is no number of four hexadecimal digits"),
        (pool("  selectors: {names: [\"eth[0-9]\"]}"), "pools.yaml:3:23: `names`: \"eth[0-9]\" is not an interface name or a pattern"),
        (pool("  selectors: {macs: [\"52:54\"]}"), "pools.yaml:3:22: `macs`: \"52:54\" is not a MAC address"),
        (pool("  selectors: {mtus: [many]}"), "pools.yaml:3:22: `mtus` is \"many\", but must be a whole number"),
        (pool("  selectors: {drivers: [a], needVhostNet: yes}"), "pools.yaml:3:29: `needVhostNet` is \"yes\", but must be true or false"),
        (pool("  selectors: {drivers: [a], Drivers: [b]}"), "pools.yaml:3:29: `drivers` stands twice in a selector"),
        (pool("  selectors: {drivers: [a]}\n  exclude: {needTun: true}"), "pools.yaml:4:13: an exclusion has no key `needTun`"),
        (pool("  deviceType: netdev\n  selectors: {drivers: [a]}"), "pools.yaml:3:3: there is no deviceType \"netdev\": did you mean `netDevice`?"),
        ("resourceList: [{resourceName: a/b, selectors: {drivers: [a]}}]".into(), "pools.yaml:1:17: `resourceName` has a \"/\""),
        ("resourceList: [{resourceName: -b, selectors: {drivers: [a]}}]".into(), "pools.yaml:1:17: \"intel.com/-b\" is not an extended resource name"),
        ("metadata: config\nresourceList: []".into(), "pools.yaml:1:1: `metadata` must be an absolute path"),
        ("kind: ConfigMap\ndata: {}".into(), "pools.yaml:1:1: this is a ConfigMap"),
        ("resourceList: []\n---\nresourceList: []".into(), "pools.yaml:3:1: a second document"),
        ("resourceList: [".into(), "pools.yaml:1:"),
        (
            "resourceList:\n- {resourceName: a, selectors: {drivers: [a]}}\n- {resourceName: a, selectors: {drivers: [b]}}".into(),
            "pools.yaml:3:3: the resource intel.com/a stands here twice",
        ),
        (
            "resourceList:\n- {resourceName: a-b, selectors: {drivers: [a]}}\n- {resourceName: a_b, selectors: {drivers: [b]}}".into(),
            "pools.yaml:3:3: intel.com/a_b and intel.com/a-b both set the variable PCIDEVICE_INTEL_COM_A_B in containers: give one another",
        ),
        (
            "resourceList:\n- {resourceName: a, selectors: {drivers: [a]}}\n- {resourceName: a-info, selectors: {drivers: [b]}}".into(),
            "pools.yaml:3:3: intel.com/a-info and intel.com/a both set the variable PCIDEVICE_INTEL_COM_A_INFO in containers",
        ),
    ] {
        let fault = read(&text).expect_err(&text);
        assert!(fault.starts_with(says), "{text:?}: {fault}");
    }
}

#[test]
fn networks_and_tags_are_joined_by_mac() {
    let network_data = r#"{"links": [{"id": "tap1", "type": "ovs", "ethernet_mac_address": "FA:16:3E:00:00:01"},
        {"id": "tap2", "ethernet_mac_address": "fa:16:3e:00:00:02"}, {"id": "bad", "ethernet_mac_address": 7}],
        "networks": [{"id": "network0", "link": "tap1", "network_id": "net-a"}, {"link": "tap9", "network_id": "net-b"}]}"#;
    let meta_data = r#"{"uuid": "x", "devices": [{"type": "nic", "bus": "pci", "address": "0000:00:02.0",
        "mac": "fa:16:3e:00:00:02", "tags": ["fast"]}, {"type": "disk", "tags": ["root"]}]}"#;
    let read = metadata_of_drive(&[network_data, meta_data]).unwrap();
    let told = |last: u8| read.0[&MacAddr([0xfa, 0x16, 0x3e, 0, 0, last])].clone();
    assert_eq!(told(1).network_ids.into_iter().collect::<Vec<_>>(), ["net-a"]);
    assert_eq!(told(2).tags.into_iter().collect::<Vec<_>>(), ["fast"]);
    assert_eq!(read.0.len(), 2);
    for bad in ["", "[]", "{}", "{\"links\": 7}"] {
        assert!(metadata(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in ".{0,200}") {
        let _ = read(&text);
        let _ = metadata(&text);
    }

    #[test]
    fn no_key_that_is_not_known_is_taken(key in "[a-zA-Z]{1,14}", place in 0_usize..3) {
        let known = [
            "resourceList", "resourcePrefix", "offerLifeline", "cdi", "metadata", "resourceName", "deviceType", "excludeTopology",
            "additionalInfo", "selectors", "exclude", "selectorobj", "vendors", "devices", "drivers", "pciAddresses", "acpiIndexes",
            "rootDevices", "linkTypes", "names", "macs", "mtus", "queues", "networkIds", "tags", "pfNames", "ddpProfiles", "pKeys",
            "auxTypes", "vdpaType", "needVhostNet", "needTun", "isRdma",
        ];
        prop_assume!(!known.iter().any(|word| word.eq_ignore_ascii_case(&key)));
        let more = |at: usize| if at == place { format!(", {key}: [x]") } else { String::new() };
        let text = format!(
            "{{resourceList: [{{resourceName: a, selectors: {{drivers: [a]{}}}{}}}]{}}}", more(0), more(1), more(2)
        );
        let refused = read(&text);
        prop_assert!(refused.as_ref().is_err_and(|fault| fault.contains("has no key")), "{refused:?}");
    }
}
