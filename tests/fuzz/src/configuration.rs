//! The agent's configuration file.

use std::collections::BTreeSet;
use std::path::Path;

use crate::Target;

pub(crate) const CONFIGURATION: Target = Target {
    name: "configuration",
    run: configuration,
    seeds: &[
        r#"{"resourceList":[{"resourceName":"a","resourcePrefix":"kernel.org","selectors":{"vendors":["1af4"],"drivers":["virtio_net"],"needVhostNet":true}},{"resourceName":"b","selectors":[{"pciAddresses":["0000:00:0a.0"]},{"mtus":[9000]}],"exclude":{"names":["eth*"]}}]}"#,
        "resourcePrefix: kernel.org\nofferLifeline: ['0000:00:03.0']\ncdi: true\nmetadata: /media/config\nresourceList:\n- resourceName: fast\n  excludeTopology: true\n  selectors:\n    macs: ['52:54:00:C4:E6:CD']\n    queues: 4\n    networkIds: [net-a]\n    tags: [x]\n",
        "resourceList: &a\n- resourceName: x\n  selectors: {drivers: [virtio_net], driverz: [e1000]}\n- *a\n",
        "resourceList: []\n---\n{}\n",
        "kind: ConfigMap\n",
        "resourceList: [{\"a\\n\\u001b[31m\": 1}]\n",
    ],
};

fn configuration(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match config::parse(text, Path::new("pools.yaml")) {
        Ok(config) => {
            let variables: BTreeSet<_> =
                config.pools.iter().flat_map(|pool| pool.resource.variables()).collect();
            assert_eq!(variables.len(), config.pools.iter().count() * 2, "a variable twice: {config:?}");
            assert!(config.metadata.as_ref().is_none_or(|path| path.is_absolute()), "{config:?}");
            for note in &config.notes {
                one_line(&note.to_string());
            }
        }
        Err(fault) => one_line(&fault.to_string()),
    }
}

/// What goes into the log is one line that says where.
fn one_line(text: &str) {
    assert!(text.starts_with("pools.yaml"), "{text:?}");
    assert!(!text.contains(char::is_control) && text.chars().count() < 1100, "{text:?}");
}
