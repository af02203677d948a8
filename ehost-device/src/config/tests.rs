use super::*;
use serde_json::{Value, json};

fn read(keys: Value) -> Result<Settings, Error> {
    let mut object = json!({"cniVersion": "1.0.0", "name": "n", "type": "ehost-device"});
    object.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    Settings::read(&Config::from_object(object.as_object().unwrap().clone()).unwrap())
}

fn device(id: &str) -> Selector {
    Selector::Device(id.parse().unwrap())
}

/// Every key that is ours or goes to the IPAM plugin.
const KEYS: [&str; 28] = [
    "cniVersion",
    "name",
    "type",
    "ipam",
    "capabilities",
    "runtimeConfig",
    "deviceID",
    "pciBusID",
    "device",
    "hwaddr",
    "kernelpath",
    "mac",
    "mtu",
    "queues",
    "ring",
    "vlan",
    "sysctl",
    "routes",
    "keepAddresses",
    "log",
    "dns",
    "ipamTimeout",
    "allowLifeline",
    "allowUnallocated",
    "allowAnotherNic",
    "kubeletDir",
    "stateDir",
    "prevResult",
];

/// The JSON in a document's fenced blocks, bare or inside YAML, that names this plugin.
fn examples(document: &str) -> Vec<Value> {
    document
        .split("```")
        .filter(|block| block.contains(r#""type": "ehost-device""#))
        .map(|block| {
            let json = &block[block.find('{').unwrap()..=block.rfind('}').unwrap()];
            serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
        })
        .collect()
}

#[test]
fn the_examples_of_the_documents_are_accepted() {
    let definition = concat!("```", include_str!("../../../deployments/virt-crd.yaml"));
    let readme = include_str!("../../README.md");
    let mut count = 0;
    for document in [include_str!("../../../docs/guide.md"), readme, definition] {
        for mut example in examples(document) {
            count += 1;
            let object = example.as_object_mut().unwrap();
            let unknown: Vec<_> = object.keys().filter(|key| !KEYS.contains(&key.as_str())).collect();
            assert!(unknown.is_empty(), "{unknown:?}");
            if ["device", "hwaddr", "kernelpath"].iter().any(|key| object.contains_key(*key)) {
                // No device plugin knows of it.
                assert_eq!(object.get("allowUnallocated"), Some(&true.into()));
            } else {
                // As a meta plugin does for a network with a resource.
                object.insert("deviceID".to_owned(), "0000:00:0a.0".into());
            }
            Settings::read(&Config::from_object(object.clone()).unwrap()).unwrap();
        }
    }
    assert!(count >= 5, "only {count} examples were found");
    for key in KEYS.iter().skip(6).filter(|key| **key != "prevResult") {
        assert!(readme.contains(&format!("`{key}`")), "{key} is not in the README");
    }
}

#[test]
fn what_the_runtime_says_goes_before_what_the_network_says() {
    let selector = |keys| read(keys).unwrap().selector;
    assert_eq!(
        selector(
            json!({"deviceID": "0000:00:0a.0", "device": "eth1", "runtimeConfig": {"deviceID": "0000:00:0a.0"}})
        ),
        device("0000:00:0a.0")
    );
    assert_eq!(
        selector(json!({"deviceID": "0000:00:09.0", "pciBusID": "0000:00:09.0", "device": "eth1"})),
        device("0000:00:09.0")
    );
    assert_eq!(selector(json!({"pciBusID": "virtio3", "deviceID": ""})), device("virtio3"));
    assert_eq!(selector(json!({"device": "eth1", "hwaddr": ""})), Selector::Name("eth1".to_owned()));
    assert_eq!(
        selector(json!({"hwaddr": "52:54:00:C4:E6:CD"})),
        Selector::Mac(MacAddr([0x52, 0x54, 0, 0xc4, 0xe6, 0xcd]))
    );
}

#[test]
fn a_kernel_path_names_the_device_with_or_without_the_interfaces_folder() {
    for path in [
        "/sys/devices/pci0000:ff/0000:ff:0a.0",
        "/sys/devices/pci0000:ff/0000:ff:0a.0/net",
        "/sys/devices/pci0000:ff/0000:ff:0a.0/net/eth7",
    ] {
        assert_eq!(read(json!({"kernelpath": path})).unwrap().selector, device("0000:ff:0a.0"), "{path}");
    }
    assert_eq!(
        read(json!({"kernelpath": "/sys/devices/virtual/net/veth0"})).unwrap().selector,
        Selector::Name("veth0".to_owned())
    );
}

#[test]
fn bad_configurations_are_refused_in_words() {
    let refused = |keys: Value| {
        let error = read(keys).unwrap_err();
        assert_eq!(error.code, Code::INVALID_CONFIG);
        error.message
    };
    let all: Vec<String> = [
        json!({}),
        json!({"deviceID": "../../etc"}),
        json!({"deviceID": 7}),
        json!({"deviceID": "0000:00:09.0", "pciBusID": "0000:00:0a.0"}),
        json!({"deviceID": "0000:00:09.0", "runtimeConfig": {"deviceID": "0000:00:0a.0"}}),
        json!({"device": "eth1", "hwaddr": "52:54:00:c4:e6:cd"}),
        json!({"hwaddr": "52:54:00"}),
        json!({"hwaddr": "ff:ff:ff:ff:ff:ff"}),
        json!({"kernelpath": "/etc/passwd"}),
        json!({"kernelpath": "/sys/devices/../../etc"}),
        json!({"device": "eth1", "stateDir": "relative"}),
        json!({"device": "eth1", "ipamTimeout": 0}),
        json!({"device": "eth1", "mtu": -1}),
        json!({"device": "eth1", "dns": "192.0.2.53"}),
        json!({"device": "eth1", "allowLifeline": "yes"}),
        json!({"device": "eth1", "allowUnallocated": 1}),
        json!({"device": "eth1", "allowAnotherNic": "true"}),
        json!({"device": "eth1", "kubeletDir": "kubelet"}),
        json!({"device": "eth1", "queues": "all"}),
        json!({"device": "eth1", "ring": 256}),
        json!({"device": "eth1", "ring": {"rx": 256, "mini": 1}}),
        json!({"device": "eth1", "vlan": 0}),
        json!({"device": "eth1", "vlan": 4095}),
        json!({"device": "eth1", "vlan": "5"}),
        json!({"device": "eth1", "sysctl": ["net.ipv4.conf.IFNAME.arp_ignore"]}),
        json!({"device": "eth1", "sysctl": {"net.ipv4.ip_forward": "1"}}),
        json!({"device": "eth1", "sysctl": {"net.ipv4.conf.IFNAME.../../all/forwarding": "1"}}),
        json!({"device": "eth1", "sysctl": {"net.ipv4.conf.IFNAME.arp_ignore": true}}),
        json!({"device": "eth1", "sysctl": {"net.ipv4.conf.IFNAME.arp_ignore": "1\n2"}}),
        json!({"device": "eth1", "routes": {"dst": "10.0.0.0/8"}}),
        json!({"device": "eth1", "routes": ["10.0.0.0/8"]}),
        json!({"device": "eth1", "routes": [{"dst": "10.0.0.0/8"}, {"dst": "10.0.0.0/8", "metric": 5}]}),
        json!({"device": "eth1", "routes": [{"gw": "10.0.0.1"}]}),
        json!({"device": "eth1", "routes": [{"dst": "10.0.0.0/8", "table": -1}]}),
        json!({"device": "eth1", "keepAddresses": "yes"}),
        json!({"device": "eth1", "keepAddresses": true, "vlan": 5}),
        json!({"device": "eth1", "log": "journal"}),
    ]
    .into_iter()
    .map(refused)
    .collect();
    insta::assert_snapshot!(all.join("\n"), @r#"
    no device is named: give one of deviceID, pciBusID, device, hwaddr or kernelpath
    deviceID: "../../etc" is not a device ID: only letters, digits and . : _ - may stand in it, and no dot first
    deviceID is not a string
    deviceID "0000:00:09.0" and pciBusID "0000:00:0a.0" are not the same
    runtimeConfig.deviceID "0000:00:0a.0" and deviceID "0000:00:09.0" are not the same
    give only one of device, hwaddr and kernelpath
    hwaddr: "52:54:00" is not a MAC address (expected six pairs of hexadecimal digits: 52:54:00:c4:e6:cd)
    hwaddr: ff:ff:ff:ff:ff:ff is not an address that a NIC can own
    kernelpath "/etc/passwd" does not lead below /sys/devices
    kernelpath "/sys/devices/../../etc" does not lead below /sys/devices
    stateDir "relative" is not an absolute path
    ipamTimeout 0 is not from 1 to 600 seconds
    mtu is not a number of bytes
    dns is not an object of name servers, domain, search list and options
    allowLifeline is not true or false
    allowUnallocated is not true or false
    allowAnotherNic is not true or false
    kubeletDir "kubelet" is not an absolute path
    queues is not a number of queues
    ring is not an object with rx, tx or both, numbers of packets
    ring is not an object with rx, tx or both, numbers of packets
    vlan 0 is not from 1 to 4094
    vlan 4095 is not from 1 to 4094
    vlan is not a tag
    sysctl is not an object of settings
    sysctl "net.ipv4.ip_forward": it is not net.ipv4 or net.ipv6, then conf or neigh, then IFNAME, then a name of small letters, digits and _
    sysctl "net.ipv4.conf.IFNAME.../../all/forwarding": it is not net.ipv4 or net.ipv6, then conf or neigh, then IFNAME, then a name of small letters, digits and _
    sysctl "net.ipv4.conf.IFNAME.arp_ignore": its value is neither a string nor a number
    sysctl "net.ipv4.conf.IFNAME.arp_ignore": its value is not from 1 to 64 printable characters
    routes is not a list of routes
    routes[0]: it is not an object
    routes[1]: "metric" is none of dst, gw, mtu, advmss, priority, table, scope
    routes[0]: missing field `dst`
    routes[0]: invalid value: integer `-1`, expected u32
    keepAddresses is not true or false
    keepAddresses and vlan: the addresses are the NIC's, and the pod is to use the VLAN upon it
    log "journal" is neither stderr nor an absolute path
    "#);
}
