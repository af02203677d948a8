//! The test bed itself: guests boot, run commands, lose NICs and die, and nothing of it hangs or stays behind.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::env;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command as HostCommand, Stdio};
use std::time::{Duration, Instant};

use vm::{Chipset, Ended, Error, Link, Nic, Spec, Stream, Vm, process_exists};

const SECOND: Duration = Duration::from_secs(1);

fn nic(address: &str, last: u8) -> Nic {
    Nic::virtio(address.parse().unwrap(), format!("52:54:00:00:00:{last:02x}").parse().unwrap())
}

fn boot(spec: Spec) -> Vm {
    Vm::boot(&spec).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs `check` in the guest until it succeeds: for what the guest's kernel does a moment after QEMU did its part.
fn eventually(vm: &Vm, check: &str) {
    let begun = Instant::now();
    let script = format!("until {check}; do :; done");
    let output = vm.command("sh").args(["-c", script.as_str()]).limit(20 * SECOND).output();
    output.and_then(vm::Output::success).unwrap_or_else(|error| panic!("{check}: {error}"));
    eprintln!("{check}: after {:?}", begun.elapsed());
}

#[test]
fn commands_have_arguments_environment_input_and_an_exit_code() {
    let vm = boot(Spec::new().cpus(1));
    let output = vm.command("sh").args(["-c", "cat; echo \"$X in $PWD\"; echo oops >&2; exit 3"]);
    let output = output.env("X", "a b").cwd("/usr").stdin("input\n").output().unwrap();
    assert_eq!(output.text(), "input\na b in /usr");
    assert_eq!(output.error_text(), "oops");
    assert_eq!(output.code(), Some(3));
    let error = output.success().unwrap_err();
    assert!(
        matches!(&error, Error::Command { ended: Ended::Code(3), stderr, .. } if stderr == "oops"),
        "{error}"
    );

    assert_eq!(vm.run(["sh", "-c", "kill -TERM $$"]).unwrap().ended, Ended::Signal(15));
    let error = vm.run(["/no/such/program"]).unwrap_err();
    assert!(matches!(&error, Error::Start(why) if why.contains("/no/such/program")), "{error}");

    // The guest is the host's root folder, with packages laid over it; what is written stays in the guest.
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    assert_eq!(vm.run(["cat", manifest]).unwrap().stdout, fs::read(manifest).unwrap());
    vm.write_file("/etc/cni/net.d/x.conf", 0o600, b"contents").unwrap();
    assert_eq!(
        vm.sh("cat /etc/cni/net.d/x.conf; stat -c ' %a' /etc/cni/net.d/x.conf").unwrap(),
        "contents 600"
    );
    let plugins = vm.bed().debian().cni_plugins.clone();
    let version = vm.command(plugins.join("host-local").to_str().unwrap()).env("CNI_COMMAND", "VERSION");
    assert!(version.stdin("{}").run().unwrap().text().contains("1.0.0"));
    vm.sh("ip link add br0 type bridge; ip link add v0 type veth; ping -c1 -W5 127.0.0.1; ethtool --version")
        .unwrap();
    vm.modprobe("vfio-pci").unwrap();
    assert!(vm.modprobe("no-such-module").is_err());
}

#[test]
fn output_streams_while_commands_run_side_by_side() {
    let vm = boot(Spec::new().cpus(1));
    let mut first = vm.command("sh").args(["-c", "echo begun; read answer; echo got $answer; sleep 1000"]);
    first = first.stdin_open();
    let mut first = first.spawn().unwrap();
    assert_eq!(first.wait_for("begun", 20 * SECOND).unwrap(), "begun");
    // While it waits for input, others run and end.
    assert_eq!(vm.sh("echo $((6 * 7))").unwrap(), "42");
    first.write(b"hello\n").unwrap();
    assert_eq!(first.next_line(20 * SECOND).unwrap().unwrap().text, "got hello");
    assert!(matches!(first.next_line(SECOND / 10), Err(Error::Timeout { .. })));
    assert_eq!(first.kill().unwrap(), Ended::Signal(9));
    assert_eq!(first.next_line(SECOND).unwrap(), None);

    let error = vm.command("echo").arg("other").spawn().unwrap().wait_for("wanted", 20 * SECOND).unwrap_err();
    assert!(matches!(&error, Error::Command { stderr, .. } if stderr == "other"), "{error}");

    let mut both = vm.command("sh").args(["-c", "echo out; echo err >&2; printf end"]).spawn().unwrap();
    let lines: Vec<_> = std::iter::from_fn(|| both.next_line(20 * SECOND).unwrap()).collect();
    let of = |stream| lines.iter().filter(move |line| line.stream == stream).map(|line| line.text.as_str());
    assert_eq!(of(Stream::Stdout).collect::<Vec<_>>(), ["out", "end"]);
    assert_eq!(of(Stream::Stderr).collect::<Vec<_>>(), ["err"]);

    // 4 MB through the agent, whole.
    let many = vm.run(["sh", "-c", "seq 1 600000"]).unwrap();
    assert_eq!(many.text().lines().count(), 600_000);
    assert_eq!(many.text().lines().last(), Some("600000"));
}

#[test]
fn a_dropped_command_is_killed_and_a_background_process_holds_nothing_up() {
    let vm = boot(Spec::new().cpus(1));
    let mut child = vm.command("sh").args(["-c", "echo $$; exec sleep 1000"]).spawn().unwrap();
    let pid = child.next_line(20 * SECOND).unwrap().unwrap().text;
    drop(child);
    eventually(&vm, &format!("[ ! -e /proc/{pid} ]"));

    let output =
        vm.command("sh").args(["-c", "sleep 1000 & echo started"]).limit(20 * SECOND).output().unwrap();
    assert_eq!((output.text().as_str(), output.code()), ("started", Some(0)));

    let limited = vm.command("sleep").arg("1000").limit(SECOND).output();
    assert!(matches!(limited, Err(Error::Timeout { .. })), "{limited:?}");
    vm.ping(20 * SECOND).unwrap();
}

#[test]
fn a_command_may_have_a_terminal() {
    let vm = boot(Spec::new().cpus(1));
    let script = "tty; stty size; [ -t 0 ] && echo input; exec sleep 1000";
    let mut child = vm.command("sh").args(["-c", script]).terminal(33, 99).spawn().unwrap();
    let mut line = || child.next_line(20 * SECOND).unwrap().unwrap().text;
    assert_eq!(line(), "/dev/pts/0");
    assert_eq!(line(), "33 99");
    assert_eq!(line(), "input");
    // The interrupt key reaches what runs in the foreground: it is the controlling terminal.
    child.write(b"\x03").unwrap();
    assert_eq!(child.wait(20 * SECOND).unwrap(), Ended::Signal(2));
}

#[test]
fn a_panic_is_an_error_with_the_consoles_last_lines() {
    let vm = boot(Spec::new().cpus(1));
    let begun = Instant::now();
    let error = vm.sh("echo c > /proc/sysrq-trigger").unwrap_err();
    assert!(matches!(error, Error::Died { .. }), "{error}");
    assert!(error.to_string().contains("Kernel panic - not syncing: sysrq triggered crash"), "{error}");
    assert!(begun.elapsed() < 20 * SECOND, "{:?}", begun.elapsed());
    // Whatever comes after it fails the same way, at once.
    assert!(matches!(vm.run(["true"]), Err(Error::Died { .. })));
}

#[test]
fn a_guest_that_cannot_boot_is_an_error_in_time() {
    let spec = Spec::new().kernel_word("rdinit=/no/such/init").kernel_word("root=/dev/none");
    let error = Vm::boot(&spec).unwrap_err();
    assert!(matches!(&error, Error::Died { .. }), "{error}");
    assert!(error.to_string().contains("Kernel panic"), "{error}");

    let spec = Spec::new().qemu_arguments(&["-S"]).boot_limit(2 * SECOND);
    let begun = Instant::now();
    let error = Vm::boot(&spec).unwrap_err();
    assert!(matches!(&error, Error::Boot { .. }), "{error}");
    assert!(begun.elapsed() < 10 * SECOND);

    let error = Vm::boot(&Spec::new().qemu_arguments(&["-no-such-option"])).unwrap_err();
    assert!(error.to_string().contains("no-such-option"), "{error}");
}

#[test]
fn a_guest_that_hangs_is_an_error_in_time() {
    let vm = boot(Spec::new().cpus(1).silence_limit(2 * SECOND));
    vm.sh("echo the last words > /dev/ttyS0").unwrap();
    let mut waiting = vm.command("sleep").arg("1000").spawn().unwrap();
    vm.qmp().pause().unwrap();
    let begun = Instant::now();
    let error = waiting.wait(1000 * SECOND).unwrap_err();
    assert!(matches!(&error, Error::Hung { .. }), "{error}");
    assert!(error.to_string().contains("the last words"), "{error}");
    assert!(matches!(vm.ping(SECOND), Err(Error::Hung { .. })));
    assert!(begun.elapsed() < 20 * SECOND, "{:?}", begun.elapsed());
    vm.qmp().resume().unwrap();
    vm.ping(20 * SECOND).unwrap();
}

#[test]
fn nics_are_where_the_spec_puts_them() {
    let spec = Spec::new()
        .nic(nic("0000:00:03.0", 3).management())
        .nic(nic("0000:00:09.0", 9))
        .nic(nic("0000:00:0a.0", 10).modern())
        .nic(nic("0000:00:0b.0", 11).e1000())
        .nic(nic("0000:01:00.0", 1))
        .nic(nic("0000:81:00.0", 129).numa(1));
    let vm = boot(spec);
    let facts = vm.sh(r#"for nic in /sys/class/net/eth*; do
            name=${nic##*/}; bus=$(ethtool -i $name | sed -n 's/^bus-info: //p')
            echo "$bus $(cat $nic/address) $(ethtool -i $name | sed -n 's/^driver: //p')" \
                "$(cat /sys/bus/pci/devices/$bus/device) $(cat /sys/bus/pci/devices/$bus/numa_node)"
        done | sort"#);
    let wanted = "\
        0000:00:03.0 52:54:00:00:00:03 virtio_net 0x1000 -1\n\
        0000:00:09.0 52:54:00:00:00:09 virtio_net 0x1000 -1\n\
        0000:00:0a.0 52:54:00:00:00:0a virtio_net 0x1041 -1\n\
        0000:00:0b.0 52:54:00:00:00:0b e1000 0x100e -1\n\
        0000:01:00.0 52:54:00:00:00:01 virtio_net 0x1041 -1\n\
        0000:81:00.0 52:54:00:00:00:81 virtio_net 0x1041 1";
    assert_eq!(facts.unwrap(), wanted);
    let route = vm.sh("ip route show default; ping -c1 -W5 10.0.2.2 >/dev/null && echo reached").unwrap();
    assert_eq!(route, "default via 10.0.2.2 dev eth0 \nreached");
}

#[test]
fn nics_on_one_hub_hear_each_other() {
    let vm = boot(Spec::new().cpus(1).nic(nic("0000:00:09.0", 9)).nic(nic("0000:00:0a.0", 10)));
    let script = "ip netns add other; ip link set eth1 netns other
        ip addr add 10.9.9.1/24 dev eth0; ip link set eth0 up
        ip -n other addr add 10.9.9.2/24 dev eth1; ip -n other link set eth1 up
        ping -c1 -W5 10.9.9.2";
    assert!(vm.sh(script).unwrap().contains("1 received"));
}

#[test]
fn a_nic_sends_although_its_only_neighbour_was_never_up() {
    let vm = boot(Spec::new().cpus(1).nic(nic("0000:00:09.0", 9)).nic(nic("0000:00:0a.0", 10)));
    vm.sh("ip addr add 10.9.9.1/24 dev eth0; ip link set eth0 up; ping -c3 -i0.2 -W1 10.9.9.2 || true")
        .unwrap();
    // The driver counts a packet once the device has taken it: three questions by ARP, at least.
    eventually(&vm, "[ $(cat /sys/class/net/eth0/statistics/tx_packets) -ge 3 ]");
}

#[test]
fn a_nic_is_plugged_and_unplugged_behind_a_root_port() {
    plug_and_unplug(Spec::new().cpus(1).root_port(1), &nic("0000:01:00.0", 1));
}

#[test]
fn a_nic_is_plugged_and_unplugged_on_bus_0() {
    plug_and_unplug(Spec::new().cpus(1).chipset(Chipset::Pc), &nic("0000:00:09.0", 9));
}

fn plug_and_unplug(spec: Spec, nic: &Nic) {
    let vm = boot(spec);
    let there = format!("[ -e /sys/bus/pci/devices/{}/virtio*/net/eth0 ]", nic.address());
    assert!(vm.sh(&there).is_err());
    vm.plug(nic).unwrap();
    eventually(&vm, &there);
    assert_eq!(vm.sh("cat /sys/class/net/eth0/address").unwrap(), nic.mac().to_string());

    vm.sh("ip link set eth0 up").unwrap();
    eventually(&vm, "[ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]");
    vm.qmp().set_link(&nic.id(), Link::Down).unwrap();
    eventually(&vm, "[ \"$(cat /sys/class/net/eth0/carrier)\" = 0 ]");
    vm.qmp().set_link(&nic.id(), Link::Up).unwrap();
    eventually(&vm, "[ \"$(cat /sys/class/net/eth0/carrier)\" = 1 ]");

    vm.unplug(nic).unwrap();
    eventually(&vm, "[ ! -e /sys/class/net/eth0 ]");
    // The cable went with it: the same NIC can come again.
    vm.plug(nic).unwrap();
    eventually(&vm, &there);
    assert!(vm.plug(nic).is_err());
}

#[test]
fn only_the_persistent_folder_outlives_a_reboot() {
    let folder = tempfile::tempdir().unwrap();
    let mut vm = boot(Spec::new().cpus(1).persist(folder.path()));
    let before = vm.boot_id().to_owned();
    vm.sh("mkdir /persist/ledger; echo lease > /persist/ledger/a; sync -f /persist; echo gone > /etc/gone")
        .unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("ledger/a")).unwrap(), "lease\n");
    vm.reboot().unwrap();
    assert_ne!(vm.boot_id(), before);
    assert_eq!(vm.sh("cat /persist/ledger/a; [ ! -e /etc/gone ]").unwrap(), "lease");
    vm.sh("echo more >> /persist/ledger/a").unwrap();
    vm.power_cycle().unwrap();
    assert_eq!(vm.sh("cat /persist/ledger/a").unwrap(), "lease\nmore");
}

#[test]
fn a_dropped_guest_leaves_no_process() {
    let vm = boot(Spec::new().cpus(1));
    let pid = vm.qemu_pid();
    let mut running = vm.command("sleep").arg("1000").spawn().unwrap();
    assert!(process_exists(pid));
    drop(vm);
    assert!(!process_exists(pid));
    assert!(matches!(running.wait(SECOND), Err(Error::Died { .. })));
}

#[test]
fn a_killed_owner_leaves_no_process() {
    const ROLE: &str = "VM_TEST_OWNER";
    if env::var_os(ROLE).is_some() {
        // The owner: boots a guest on a thread that ends, says so, and waits for its end.
        let vm = std::thread::spawn(|| boot(Spec::new().cpus(1))).join().unwrap();
        vm.ping(20 * SECOND).unwrap();
        println!("qemu={}", vm.qemu_pid());
        std::thread::park();
    }
    let mut owner = HostCommand::new(env::current_exe().unwrap())
        .args(["--exact", "vm::a_killed_owner_leaves_no_process", "--nocapture"])
        .env(ROLE, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(owner.stdout.take().unwrap()).lines().map_while(Result::ok);
    let qemu = lines.find_map(|line| line.split_once("qemu=")?.1.parse().ok());
    let alive = qemu.is_some_and(process_exists);
    owner.kill().unwrap();
    owner.wait().unwrap();
    assert!(alive, "the owner's guest did not run");
    let begun = Instant::now();
    while process_exists(qemu.unwrap()) {
        assert!(begun.elapsed() < 10 * SECOND, "QEMU outlived its owner");
        std::thread::yield_now();
    }
}
