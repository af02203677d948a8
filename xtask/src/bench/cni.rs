//! ADD and DEL beside containernetworking's host-device and the bare kernel operations: on a veth pair in namespaces of its own, and on a
//! virtio NIC in a VM. `tests/cni-suite/examples/measure.rs` takes the times; here they become a table, a plot, and an answer to each target.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use vm::{Bed, Programs};

use super::report::{Bar, Panel, Spread, Table, plot, publish};
use super::{LIMIT, Options, bash, load};
use crate::progress::Progress;
use crate::{build, demo};

/// What is promised, in times of host-device's, in times of the bare operations', in bytes.
const OF_HOST_DEVICE: f64 = 0.4;
const OF_BARE: f64 = 1.3;
const OF_START: f64 = 0.5;
const SIZE: f64 = 3e6;
const MEMORY: f64 = 4e6;

const OURS: &str = "ehost-device";
const THEIRS: &str = "host-device";
const BESIDE: &str = "host-device-beside";
/// What the plot shows, for those who do not see it.
const ALT: &str = "ADD and DEL: bare kernel operations, ehost-device and host-device";
const IPAM: &str = "host-local";

/// A disk of its own in the VM: the root folder there is in memory, where a sync costs nothing, and this machine's folders are on 9p, from
/// which programs start slowly.
const DISK_BYTES: u64 = 64 << 20;
const MOUNT: &str = "mkfs.ext4 -q /dev/vda && mkdir -p /mnt/bench && mount /dev/vda /mnt/bench && cp -r $programs /mnt/bench/programs";
/// What a round may take in a VM without KVM, on a machine that has other work.
const ROUND: Duration = Duration::from_secs(30);
/// The spare NIC of [`demo::machine`].
const NIC: &str = "eth2";

/// What was measured at one place.
#[derive(Debug)]
struct Place {
    name: &'static str,
    times: BTreeMap<String, Spread>,
    memory: BTreeMap<String, f64>,
}

pub(super) fn run(bed: &Bed, programs: &Programs, options: &Options, progress: &Progress) -> Result<()> {
    let load_before = load()?;
    // On the disk, since the leases are synced to it.
    let folder = tempfile::tempdir_in(build::target_folder()?).context("cannot make a folder")?;
    let measured = folder.path().join("programs");
    build::measure(progress, &measured)?;
    let plugins = bed.debian().host_cni_plugins();
    let mut all = vec![(OURS, programs.ehost_device.clone()), (THEIRS, plugins.join(THEIRS))];
    all.extend(options.host_device.as_ref().map(|path| (BESIDE, path.clone())));
    for (name, program) in all.iter().chain([&(IPAM, plugins.join(IPAM))]) {
        fs::copy(program, measured.join(name))
            .with_context(|| format!("cannot copy {}", program.display()))?;
    }
    let words = |programs: &Path, state: &Path| {
        let (programs, state, rounds) = (programs.display(), state.display(), options.rounds);
        [format!("programs={programs}"), format!("state={state}"), format!("rounds={rounds}")]
    };

    let step = progress.step("Measure ADD and DEL on a veth pair");
    let mut command = std::process::Command::new(std::env::current_exe().context("our own program")?);
    command.args(["in-namespace", "--"]).arg(measured.join("measure")).args(words(&measured, folder.path()));
    let veth = Place::read("veth pair", &step.run(&mut command)?)?;
    step.done(&format!("{} rounds", options.rounds));

    let step = progress.step("Measure ADD and DEL on a virtio NIC in a VM");
    let disk = folder.path().join("disk.img");
    let made = fs::File::create(&disk).and_then(|file| file.set_len(DISK_BYTES));
    made.with_context(|| format!("cannot write {}", disk.display()))?;
    let drive = format!("file={},if=none,id=disk,format=raw,cache=writeback", disk.display());
    let device = "virtio-blk-pci,drive=disk,bus=pcie.0,addr=1a.0";
    let vm = bed.boot(&demo::machine()?.qemu_arguments(&["-drive", &drive, "-device", device]))?;
    for module in ["virtio_blk", "ext4"] {
        vm.modprobe(module)?;
    }
    bash(&vm, MOUNT, &[("programs", &measured.display().to_string())])?;
    let mut command = vm.command("/mnt/bench/programs/measure").limit(LIMIT + options.rounds * ROUND);
    command = command.args(words(Path::new("/mnt/bench/programs"), Path::new("/mnt/bench")));
    command = command.arg(format!("nic={NIC}"));
    let virtio = Place::read("virtio NIC in a VM", &command.run()?.text())?;
    step.done(&format!(
        "{}, {} rounds, up after {:.1} s",
        bed.accelerator(),
        options.rounds,
        vm.boot_time().as_secs_f64()
    ));

    let names = names(&all)?;
    let places = [veth, virtio];
    let table = table(&places, &names, &programs.ehost_device)?;
    let said = format!(
        "Medians of {} rounds, all programs in turn in each; Linux {} on the machine, {} in the VM ({}). Load of the machine: {load_before} before, {} after.\n",
        options.rounds,
        release()?,
        bed.debian().release,
        bed.accelerator(),
        load()?,
    );
    println!("{}\n{said}", table.markdown());
    if options.write {
        publish("cni", ALT, &format!("{}\n{said}\n", table.markdown()), &plot(&panels(&places, &names)?))?;
    }
    Ok(())
}

/// The kernel's, without what a distribution adds.
fn release() -> Result<String> {
    let text =
        fs::read_to_string("/proc/sys/kernel/osrelease").context("cannot read the kernel's release")?;
    Ok(text.trim().split('-').next().unwrap_or_default().to_owned())
}

/// What the programs are called in the table: `host-device 1.9.1`.
fn names(all: &[(&'static str, PathBuf)]) -> Result<BTreeMap<&'static str, String>> {
    all.iter().map(|(key, program)| Ok((*key, name(key, program)?))).collect()
}

fn name(key: &str, program: &Path) -> Result<String> {
    let contents = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    Ok(match (key, module_version(&contents)) {
        (OURS, _) => OURS.to_owned(),
        (_, Some(version)) => format!("{THEIRS} {version}"),
        (BESIDE, None) => format!("{THEIRS} of --host-device"),
        // A distribution builds from its own copy of the source, without the module.
        (_, None) => format!("Debian's {THEIRS}"),
    })
}

/// The version of the module that a Go program was built from, which its build information names: `1.9.1`.
fn module_version(program: &[u8]) -> Option<String> {
    let begin = b"\tgithub.com/containernetworking/plugins\tv";
    let place = program.windows(begin.len()).position(|window| window == begin)?;
    let rest = program.get(place + begin.len()..)?;
    let version = rest.split(|byte| b"\t\n".contains(byte)).next()?;
    Some(String::from_utf8_lossy(version).into_owned())
}

impl Place {
    /// Reads lines `<what> <microseconds> <bytes>`.
    fn read(name: &'static str, lines: &str) -> Result<Self> {
        let mut times = BTreeMap::<String, Vec<f64>>::new();
        let mut memory = BTreeMap::<String, f64>::new();
        for line in lines.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [what, time, bytes] = words.as_slice() else { bail!("the bench said {line:?}") };
            let number = |word: &str| word.parse::<f64>().with_context(|| format!("the bench said {line:?}"));
            times.entry((*what).to_owned()).or_default().push(number(time)? / 1e3);
            let most = memory.entry((*what).to_owned()).or_default();
            *most = most.max(number(bytes)?);
        }
        let times: Result<_> = times.into_iter().map(|(what, all)| Ok((what, Spread::of(all)?))).collect();
        Ok(Place { name, times: times?, memory })
    }

    fn spread(&self, who: &str, verb: &str) -> Result<Spread> {
        let what = format!("{who}:{verb}");
        self.times
            .get(&what)
            .copied()
            .with_context(|| format!("{what} was not measured on the {}", self.name))
    }

    /// In milliseconds.
    fn time(&self, who: &str, verb: &str) -> Result<f64> {
        Ok(self.spread(who, verb)?.median)
    }

    /// Its own part of a call with IPAM.
    fn less_ipam(&self, who: &str, verb: &str) -> Result<f64> {
        Ok(self.time(&format!("{who}+{IPAM}"), verb)? - self.time(IPAM, verb)?)
    }

    /// The most that ours had in memory, without what IPAM had.
    fn resident(&self) -> f64 {
        let calls = ["ADD", "DEL"].map(|verb| self.memory.get(&format!("{OURS}:{verb}")).copied());
        calls.into_iter().flatten().fold(0.0, f64::max)
    }
}

/// The figure of a line at a place, as it is shown.
type Cell<'a> = Box<dyn Fn(&Place) -> Result<String> + 'a>;

/// A line of the table: a figure for each place, and what it should be at most.
struct Row<'a> {
    what: String,
    target: String,
    cell: Cell<'a>,
}

impl<'a> Row<'a> {
    fn time(what: String, who: String, verb: &'static str) -> Self {
        let cell = Box::new(move |place: &Place| Ok(format!("{:.1} ms", place.time(&who, verb)?)));
        Row { what, target: String::new(), cell }
    }

    /// How many times the second figure the first one is.
    fn ratio(what: String, target: f64, of: impl Fn(&Place) -> Result<(f64, f64)> + 'a) -> Self {
        let cell = Box::new(move |place: &Place| {
            let (one, other) = of(place)?;
            Ok(judged(format!("{:.2}", one / other), one / other <= target))
        });
        Row { what, target: format!("at most {target}"), cell }
    }

    fn bytes(what: &str, target: f64, of: impl Fn(&Place) -> f64 + 'a) -> Self {
        let cell = Box::new(move |place: &Place| {
            Ok(judged(format!("{:.1} MB", of(place) / 1e6), of(place) < target))
        });
        Row { what: what.to_owned(), target: format!("under {} MB", target / 1e6), cell }
    }
}

fn judged(text: String, holds: bool) -> String {
    if holds { text } else { format!("**{text}, missed**") }
}

fn table(places: &[Place], names: &BTreeMap<&'static str, String>, program: &Path) -> Result<Table> {
    let theirs: Vec<&'static str> =
        [THEIRS, BESIDE].into_iter().filter(|name| names.contains_key(name)).collect();
    let all: Vec<&'static str> = theirs.iter().copied().chain([OURS]).collect();
    let name = |key: &str| names.get(key).cloned().unwrap_or_else(|| key.to_owned());
    let times = |key: &str| format!("in times of {}'s", name(key));
    let mut rows = Vec::new();
    for verb in ["ADD", "DEL"] {
        rows.push(Row::time(format!("{verb}: the bare kernel operations"), "bare".to_owned(), verb));
        rows.extend(
            all.iter().map(|key| Row::time(format!("{verb}: {}", name(key)), (*key).to_owned(), verb)),
        );
        let of = move |place: &Place| Ok((place.time(OURS, verb)?, place.time("bare", verb)?));
        rows.push(Row::ratio("in times of the bare operations'".to_owned(), OF_BARE, of));
        rows.extend(theirs.iter().map(|key| {
            Row::ratio(times(key), OF_HOST_DEVICE, move |place| {
                Ok((place.time(OURS, verb)?, place.time(key, verb)?))
            })
        }));
        rows.push(Row::time(format!("{verb}: {IPAM} alone"), IPAM.to_owned(), verb));
        rows.extend(all.iter().map(|key| {
            Row::time(format!("{verb}: {} with {IPAM}", name(key)), format!("{key}+{IPAM}"), verb)
        }));
        rows.extend(theirs.iter().map(|key| {
            let what = format!("less that of {IPAM}, {}", times(key));
            Row::ratio(what, OF_HOST_DEVICE, move |place| {
                Ok((place.less_ipam(OURS, verb)?, place.less_ipam(key, verb)?))
            })
        }));
    }
    for (verb, processor) in [("ADD", "ADD:processor"), ("DEL", "DEL:processor")] {
        let what = |name: String| format!("{verb}: processor time of {name}");
        rows.push(Row::time(what("the bare operations".to_owned()), "bare".to_owned(), processor));
        rows.extend(all.iter().map(|key| Row::time(what(name(key)), (*key).to_owned(), processor)));
    }
    let start = "VERSION";
    rows.extend(all.iter().map(|key| Row::time(format!("{start}: {}", name(key)), (*key).to_owned(), start)));
    rows.extend(theirs.iter().map(|key| {
        Row::ratio(times(key), OF_START, move |place| Ok((place.time(OURS, start)?, place.time(key, start)?)))
    }));
    rows.push(Row::bytes("ehost-device: resident memory", MEMORY, Place::resident));
    let size = size(program)?;
    rows.push(Row::bytes("ehost-device: size, static", SIZE, move |_| size));

    let heads: Vec<&str> = ["", "target"].into_iter().chain(places.iter().map(|place| place.name)).collect();
    let mut table = Table::new(&heads);
    for row in rows {
        let cells = places.iter().map(&row.cell).collect::<Result<Vec<_>>>()?;
        table.row([vec![row.what, row.target], cells].concat());
    }
    Ok(table)
}

/// The size of a program that needs no other file.
fn size(program: &Path) -> Result<f64> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    // The path of the dynamic linker, which every program has that needs one.
    let is_static = !bytes.windows(7).any(|window| window == b"/ld-lin");
    ensure!(is_static, "{} is not static", program.display());
    Ok(f64::from(u32::try_from(bytes.len())?))
}

fn panels(places: &[Place], names: &BTreeMap<&'static str, String>) -> Result<Vec<Panel>> {
    let mut panels = Vec::new();
    for place in places {
        for verb in ["ADD", "DEL"] {
            let mut bars = Vec::new();
            for key in ["bare", OURS, THEIRS, BESIDE] {
                let label = names.get(key).cloned();
                if key == "bare" || label.is_some() {
                    let label = label.unwrap_or_else(|| "the bare kernel operations".to_owned());
                    bars.push(Bar { label, spread: place.spread(key, verb)?, ours: key == OURS });
                }
            }
            panels.push(Panel { title: format!("{verb} on a {}", place.name), bars });
        }
    }
    Ok(panels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(ours: u32) -> Place {
        let mut lines = String::new();
        for who in ["bare", IPAM, OURS, THEIRS] {
            for verb in ["ADD", "DEL"] {
                let time = match who {
                    OURS => ours,
                    THEIRS => 50_000,
                    _ => 16_000,
                };
                lines.push_str(&format!(
                    "{who}:{verb} {time} 2000000\n{who}+{IPAM}:{verb} {} 2000000\n",
                    time + 16_000
                ));
                lines.push_str(&format!("{who}:{verb}:processor 1000 2000000\n"));
            }
            lines.push_str(&format!("{who}:VERSION 900 1000000\n"));
        }
        Place::read("veth pair", &lines).unwrap()
    }

    #[test]
    fn a_target_that_is_missed_is_said_to_be() {
        let names = BTreeMap::from([(OURS, OURS.to_owned()), (THEIRS, "host-device 1.2.3".to_owned())]);
        let program = std::env::current_exe().unwrap();
        let table = |ours| table(&[place(ours)], &names, &program);
        // A test program is linked dynamically.
        assert!(table(18_000).unwrap_err().to_string().contains("not static"));
        let program = tempfile::NamedTempFile::new().unwrap();
        let rows = |ours| super::table(&[place(ours)], &names, program.path()).unwrap().markdown();
        let line =
            |text: &str, begin: &str| text.lines().find(|line| line.contains(begin)).unwrap().to_owned();
        let good = line(&rows(18_000), "in times of host-device 1.2.3's");
        assert!(good.contains("0.36") && !good.contains("missed"), "{good}");
        let bad = line(&rows(30_000), "in times of host-device 1.2.3's");
        assert!(bad.contains("**0.60, missed**"), "{bad}");
        assert!(Place::read("veth pair", "bare:ADD 12").is_err());
    }
}
