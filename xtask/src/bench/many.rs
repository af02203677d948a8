//! The agent in a VM with as many virtio NICs as one PCI bus takes: how long until the kubelet has the list, and how much memory that takes;
//! beside sriov-network-device-plugin where its program is given.

use std::path::Path;

use anyhow::{Context as _, Result};
use vm::{Bed, GUEST_PATH, Nic, Programs, Spec};

use super::{LIMIT, bash, median};
use crate::progress::Step;

/// Slots of bus 0 from that of the management NIC on, eight functions each.
const SLOTS: std::ops::RangeInclusive<u8> = 0x03..=0x1b;
/// How often each agent is started.
const ROUNDS: u32 = 5;

/// Prints `<agent> <microseconds from its start until it has sent the list> <kB resident> <milliseconds of its look>`, the last of virtdp alone.
/// What watches the log runs before the agent does, so that it costs nothing while the agent starts.
const SCRIPT: &str = r#"
virtsim up >/dev/null
until_sent() {
    local what=$1 begin end rss look=; shift
    : >/tmp/log
    timeout 60 grep -m 1 -q 'ListAndWatch.* send ' < <(exec tail -n +1 -s 0.01 -f /tmp/log) &
    local watcher=$!
    sleep 0.5
    begin=$EPOCHREALTIME
    "$@" >>/tmp/log 2>&1 &
    local agent=$!
    wait $watcher || { tail -n 5 /tmp/log | cut -c 1-300; exit 1; }
    end=$EPOCHREALTIME
    while read -r key rss rest; do [ $key = VmRSS: ] && break; done </proc/$agent/status
    look=$(sed -n 's/.*looked at all interfaces.*milliseconds="\([0-9.]*\)".*/\1/p' /tmp/log)
    echo "$what $(( ${end/./} - ${begin/./} )) $rss $look"
    kill $agent
    wait $agent || true
}
if [ "$beside" ]; then
    # Without a list of names it does not start; its image has one that is larger.
    if ! [ -e /usr/share/misc/pci.ids ]; then
        mkdir -p /usr/share/misc
        printf '1af4  Red Hat, Inc.\n\t1041  Virtio 1.0 network device\nC 02  Network controller\n\t00  Ethernet controller\n' >/usr/share/misc/pci.ids
    fi
    echo '{"resourceList": [{"resourceName": "bench", "selectors": [{"drivers": ["virtio-pci"]}]}]}' >/tmp/config.json
fi
for round in $(seq "$rounds"); do
    until_sent virtdp virtdp --logtostderr
    [ -z "$beside" ] || until_sent beside "$beside" --config-file /tmp/config.json --logtostderr
done
virtsim down >/dev/null
"#;

pub(super) fn run(bed: &Bed, programs: &Programs, beside: Option<&Path>, step: &Step) -> Result<()> {
    step.note("boot");
    let vm = bed.boot(&machine()?)?;
    let count = bash(&vm, "ls -d /sys/bus/virtio/drivers/virtio_net/virtio* | wc -l", &[])?;
    step.note("virtdp");
    let path = format!("{}:{GUEST_PATH}", programs.folder.display());
    let beside = match beside {
        Some(program) => program.canonicalize().with_context(|| program.display().to_string())?,
        None => Path::new("").to_owned(),
    };
    let (rounds, beside) = (ROUNDS.to_string(), beside.display().to_string());
    let said = bash(&vm, SCRIPT, &[("PATH", &path), ("beside", &beside), ("rounds", &rounds)])?;
    println!("virtio NICs in the VM                                      {:>12}", count.trim());
    let figures = |agent: &str, at: usize| -> Result<u64> {
        let lines = said.lines().filter_map(|line| line.strip_prefix(agent)?.strip_prefix(' '));
        let numbers = lines.filter_map(|line| line.split(' ').nth(at)?.parse().ok());
        median(&mut numbers.collect::<Vec<u64>>()).with_context(|| format!("{agent} said: {said}"))
    };
    let tell = |what: &str, figure: u64, unit: &str| println!("{what:58} {figure:>9} {unit}");
    tell("virtdp: its look at the node", figures("virtdp", 2)?, "ms");
    tell("virtdp: from its start until the kubelet has the list", figures("virtdp", 0)? / 1000, "ms");
    tell("virtdp: resident", figures("virtdp", 1)?, "kB");
    if !beside.is_empty() {
        let until = figures("beside", 0)? / 1000;
        tell("sriov-network-device-plugin: from its start until then", until, "ms");
        tell("sriov-network-device-plugin: resident", figures("beside", 1)?, "kB");
    }
    Ok(())
}

/// The management NIC, and a NIC at each other function. Without MSI-X, of which there is not enough for all, and without the ports of the
/// old interface.
fn machine() -> Result<Spec> {
    let management: Nic = Nic::virtio("0000:00:03.0".parse()?, "52:54:00:00:00:03".parse()?);
    // The kernel sets up two hundred NICs before the first command.
    let mut spec = Spec::new().memory(1024).boot_limit(LIMIT);
    spec = spec.qemu_arguments(&["-global", "virtio-net-pci.vectors=0"]);
    spec = spec.nic(management.modern().management());
    for (slot, function) in SLOTS.flat_map(|slot| (0..8).map(move |function| (slot, function))) {
        if (slot, function) == (0x03, 0) {
            continue;
        }
        let address = format!("0000:00:{slot:02x}.{function}").parse()?;
        let mac = format!("52:54:00:01:{slot:02x}:{function:02x}").parse()?;
        spec = spec.nic(Nic::virtio(address, mac).modern());
    }
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_two_hundred_nics() {
        let text = format!("{:?}", machine().unwrap());
        assert_eq!(text.matches("Virtio").count(), 200);
    }
}
