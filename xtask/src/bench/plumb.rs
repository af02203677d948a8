//! What plumbing a NIC costs beside `ip link set ... netns`, from one boot of one VM.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use vm::{Bed, GUEST_PATH, Programs};

use super::{bash, median};
use crate::demo;
use crate::progress::Step;

/// How many times the VM is booted; the median counts.
const BOOTS: usize = 3;

/// The processes are timed by bash itself: what is not measured starts no process under emulation, where that costs most.
/// Prints a line `<what> <microseconds>` for each.
const PLUMB: &str = r#"
took() { local what=$1 begin end; shift; begin=$EPOCHREALTIME; "$@" >/tmp/said || { cat /tmp/said; exit 1; }; end=$EPOCHREALTIME
         echo "$what $(( ${end/./} - ${begin/./} ))"; }
plugin() { CNI_COMMAND=$1 "$programs/ehost-device" <"$2"; }
export CNI_CONTAINERID=bench CNI_NETNS=/var/run/netns/bench CNI_IFNAME=net1 CNI_PATH=$plugins
head='"cniVersion": "1.0.0", "name": "bench", "type": "ehost-device", "deviceID": "0000:00:0a.0"'
echo "{$head}" >/tmp/plain
echo "{$head, \"ipam\": {\"type\": \"host-local\", \"subnet\": \"10.56.217.0/24\"}}" >/tmp/addresses
ip netns add bench
for round in $(seq "$rounds"); do
    took ip-out ip link set eth2 netns bench
    took ip-home ip -netns bench link set eth2 netns 1
    took plain-out plugin ADD /tmp/plain
    took plain-home plugin DEL /tmp/plain
    took addresses-out plugin ADD /tmp/addresses
    took addresses-home plugin DEL /tmp/addresses
done
"#;

/// Resident memory of the agent once it has told the kubelet of its NICs, in kB.
const MEMORY: &str = r#"
virtsim up >/dev/null
virtdp --logtostderr -v 10 2>/tmp/virtdp.log &
for try in $(seq 300); do grep -q 'registered with the Kubelet' /tmp/virtdp.log && break; sleep 0.1; done
grep -q 'registered with the Kubelet' /tmp/virtdp.log || { cat /tmp/virtdp.log; exit 1; }
sed -n 's/^VmRSS:[^0-9]*\([0-9]*\) kB$/\1/p' /proc/$!/status
kill $!
virtsim down >/dev/null
"#;

pub(super) fn run(bed: &Bed, programs: &Programs, rounds: u32, step: &Step) -> Result<()> {
    let spec = demo::machine()?;
    step.note("boot");
    let mut boots = Vec::new();
    let mut vm = bed.boot(&spec)?;
    boots.push(vm.boot_time());
    while boots.len() < BOOTS {
        vm.power_cycle()?;
        boots.push(vm.boot_time());
    }
    let folder = programs.folder.display().to_string();
    step.note("memory of virtdp");
    let path = format!("{folder}:{GUEST_PATH}");
    let memory = bash(&vm, MEMORY, &[("PATH", &path)])?;
    step.note("ADD and DEL");
    let plugins = bed.debian().cni_plugins.display().to_string();
    let rounds = rounds.to_string();
    let times = bash(&vm, PLUMB, &[("programs", &folder), ("plugins", &plugins), ("rounds", &rounds)])?;

    println!("boot to the first command  {:>7.2} s", median(&mut boots)?.as_secs_f64());
    println!("virtdp, resident           {:>7} kB", memory.trim());
    for program in [&programs.virtdp, &programs.virtsim, &programs.virt_meta, &programs.ehost_device] {
        let size = fs::metadata(program).with_context(|| program.display().to_string())?.len();
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("{:26} {:>7} kB", format!("{name}, size"), size / 1000);
    }
    for (verb, way, ip) in
        [("ADD", "out", "ip link set eth2 netns POD"), ("DEL", "home", "ip -netns POD link set eth2 netns 1")]
    {
        let base = time(&times, &format!("ip-{way}"))?;
        println!("{ip:42} {:>7.1} ms", base.as_secs_f64() * 1e3);
        for (key, what) in [("plain", "without IPAM"), ("addresses", "with host-local")] {
            let took = time(&times, &format!("{key}-{way}"))?;
            let ratio = took.as_secs_f64() / base.as_secs_f64();
            let what = format!("ehost-device {verb} {what}");
            println!("{what:42} {:>7.1} ms  {ratio:.1} times that", took.as_secs_f64() * 1e3);
        }
    }
    Ok(())
}

/// The median of the lines `<what> <microseconds>`.
fn time(lines: &str, what: &str) -> Result<Duration> {
    let times = lines.lines().filter_map(|line| line.strip_prefix(what)?.strip_prefix(' ')?.parse().ok());
    median(&mut times.map(Duration::from_micros).collect::<Vec<_>>()).with_context(|| what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_each_kind_is_taken() {
        let lines = "ip-out 10\nip-home 7\nip-out 30\nip-out 20\nip-outside 1";
        assert_eq!(time(lines, "ip-out").unwrap(), Duration::from_micros(20));
        assert!(time(lines, "plain-out").is_err());
    }
}
