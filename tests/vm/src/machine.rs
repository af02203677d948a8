//! From a [`Spec`] to a running guest, and to nothing again.

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command as HostCommand;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use serde_json::{Map, Value};
use tempfile::TempDir;
use vm_guest::boot::{AGENT_PORT, PERSIST_TAG, READY_LINE, ROOT_TAG, TOOLS_TAG, Words};
use vm_guest::protocol::{CHUNK, Frame, Hello, WriteFile};

use crate::accelerator::{self, Accelerator};
use crate::agent::Agent;
use crate::command::{Command, Output};
use crate::debian::Debian;
use crate::error::{Error, file};
use crate::initramfs;
use crate::process::Qemu;
use crate::programs::programs;
use crate::qmp::Qmp;
use crate::spec::{Nic, Spec};

/// Each word either saves boot time under emulation or makes a broken guest end instead of wait.
const KERNEL_WORDS: &str = "console=ttyS0 quiet panic=-1 mitigations=off init_on_alloc=0 cryptomgr.notests audit=0 \
    apparmor=0 lsm= tsc=reliable no_timer_check 8250.nr_uarts=1 i8042.noaux i8042.nokbd i8042.nopnp \
    rcupdate.rcu_expedited=1 nowatchdog";

/// COMMAND_LINE_SIZE of x86.
const KERNEL_LINE_LIMIT: usize = 2048;

/// How long a guest may take to shut down before it is killed.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);
/// How long a QEMU that has hung up may take to end.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);
/// How long a NIC may take to go.
const UNPLUG_LIMIT: Duration = Duration::from_secs(30);

/// Set-up of the management NIC, whose address is the first argument.
const MANAGEMENT: &str = r#"
for path in /sys/bus/pci/devices/"$1"/virtio*/net/* /sys/bus/pci/devices/"$1"/net/*; do
    [ -e "$path" ] && nic=${path##*/}
done
ip -batch - <<END
address add 10.0.2.15/24 dev $nic
link set $nic up
route add default via 10.0.2.2 dev $nic
END
"#;

/// Everything that guests are made from.
#[derive(Debug, Clone)]
pub struct Bed {
    debian: Debian,
    guest: PathBuf,
    accelerator: Accelerator,
}

impl Bed {
    /// Guests from these packages, with this init ([`crate::Programs::vm_guest`]). Finds out once whether KVM works.
    ///
    /// # Errors
    /// [`Error::Machine`] on anything but x86-64.
    pub fn new(debian: Debian, guest: impl Into<PathBuf>) -> Result<Self, Error> {
        if std::env::consts::ARCH != "x86_64" {
            return Err(Error::Machine(std::env::consts::ARCH.to_owned()));
        }
        let memory = debian.folder.join("accelerator");
        let mut bed = Self { debian, guest: guest.into(), accelerator: Accelerator::Kvm };
        bed.accelerator = accelerator::choose(&memory, |deadline| bed.probe(deadline).unwrap_or(false));
        Ok(bed)
    }

    /// What `cargo xtask test` prepared for this run.
    ///
    /// # Errors
    /// [`Error::NotBuilt`] outside of it.
    pub fn from_env() -> Result<Self, Error> {
        Self::new(Debian::load()?, programs()?.vm_guest)
    }

    /// What runs the guests' instructions.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// What the guests are made from.
    pub fn debian(&self) -> &Debian {
        &self.debian
    }

    /// Boots a guest until it takes commands.
    ///
    /// # Errors
    /// [`Error::Boot`] when it does not within the limit, [`Error::Died`], [`Error::Spec`], [`Error::File`], [`Error::Host`].
    pub fn boot(&self, spec: &Spec) -> Result<Vm, Error> {
        let vm = Vm { bed: self.clone(), spec: spec.clone(), running: self.start(spec)? };
        vm.set_up_management()?;
        Ok(vm)
    }

    /// Whether a guest prints its first line before `deadline`.
    fn probe(&self, deadline: Instant) -> Result<bool, Error> {
        let folder = TempDir::with_prefix("vm-").map_err(file("make a folder", "for the VM"))?;
        let words = Words { probe: true, ..Words::default() };
        let mut command = self.qemu(&Spec::new().cpus(1).memory(256), &words, folder.path())?;
        command.args([
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
            "-monitor",
            "none",
            "-no-reboot",
        ]);
        let qemu = Qemu::start(command)?;
        let ended = qemu.wait_end(deadline.saturating_duration_since(Instant::now()));
        Ok(ended && qemu.last_words().0.iter().any(|line| line.contains(READY_LINE)))
    }

    /// QEMU with processor, memory, buses, NICs and kernel; the RAM disk is made in `folder`.
    fn qemu(&self, spec: &Spec, words: &Words, folder: &Path) -> Result<HostCommand, Error> {
        let debian = &self.debian;
        let initrd = folder.join("initrd");
        let contents = initramfs::build(&self.guest, debian)?;
        fs::write(&initrd, contents).map_err(file("write", &initrd))?;
        let mut line = KERNEL_WORDS.to_owned();
        for word in words.to_arguments().iter().chain(&spec.kernel_words) {
            line.push(' ');
            line.push_str(word);
        }
        if line.len() >= KERNEL_LINE_LIMIT {
            return Err(Error::Spec(format!("the kernel's command line has {} bytes", line.len())));
        }
        let mut command = HostCommand::new(&debian.qemu);
        command.args(spec.arguments()?).args(self.accelerator.arguments());
        for firmware in &debian.firmware {
            command.arg("-L").arg(firmware);
        }
        if let Some(libraries) = debian.host_libraries() {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        if let Some(modules) = &debian.qemu_modules {
            command.env("QEMU_MODULE_DIR", modules);
        }
        command.arg("-kernel").arg(&debian.vmlinux).arg("-initrd").arg(&initrd).arg("-append").arg(line);
        Ok(command)
    }

    fn start(&self, spec: &Spec) -> Result<Running, Error> {
        let begun = Instant::now();
        let deadline = begun + spec.boot_limit;
        let folder = TempDir::with_prefix("vm-").map_err(file("make a folder", "for the VM"))?;
        let tools = self.debian.root().is_dir();
        let words = Words { probe: false, tools, persist: spec.persist.is_some(), keep: self.keep()? };
        let mut command = self.qemu(spec, &words, folder.path())?;
        command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        let listen = |name: &str| {
            let path = folder.path().join(name);
            UnixListener::bind(&path)
                .map(|listener| (listener, path.clone()))
                .map_err(file("listen at", path))
        };
        let (agent, agent_path) = listen("agent")?;
        let (qmp, qmp_path) = listen("qmp")?;
        command.args(["-chardev", &format!("socket,id=agent,path={}", option_value(&agent_path))]);
        let bus = spec.root_bus();
        command.args(["-device", &format!("virtio-serial-pci,bus={bus},addr=1e.0")]);
        command.args(["-device", &format!("virtserialport,chardev=agent,name={AGENT_PORT}")]);
        command.args(["-qmp", &format!("unix:{}", option_value(&qmp_path))]);
        for hub in spec.hubs() {
            // A hub holds a packet back until somebody can receive, so a NIC whose neighbours were never up could send one packet,
            // and no more. A socket that nobody connects to takes everything and drops it, as a switch would.
            let path = option_value(&folder.path().join(format!("void{hub}")));
            command
                .args(["-netdev", &format!("stream,id=void{hub},server=on,addr.type=unix,addr.path={path}")]);
            command.args(["-netdev", &format!("hubport,id=void{hub}-port,hubid={hub},netdev=void{hub}")]);
        }
        let mut share = |tag: &str, path: &Path, access: &str| {
            let path = option_value(path);
            let fs = format!("local,id={tag},path={path},security_model=none,multidevs=remap{access}");
            command.args([
                "-fsdev",
                &fs,
                "-device",
                &format!("virtio-9p-pci,fsdev={tag},mount_tag={tag},bus={bus},{}", slot(tag)),
            ]);
        };
        share(ROOT_TAG, Path::new("/"), ",readonly=on");
        if tools {
            share(TOOLS_TAG, &self.debian.root(), ",readonly=on");
        }
        if let Some(persist) = &spec.persist {
            share(PERSIST_TAG, persist, "");
        }

        let qemu = Arc::new(Qemu::start(command)?);
        let failed = || {
            // It hangs up a moment before it has ended.
            if qemu.wait_end(SETTLE_LIMIT) {
                Error::Died { console: qemu.last_words() }
            } else {
                Error::Boot { limit: spec.boot_limit, console: qemu.last_words() }
            }
        };
        let accept = |listener: &UnixListener, path: &Path| -> Result<UnixStream, Error> {
            if !qemu.wait_readable(listener, deadline) {
                return Err(failed());
            }
            listener.accept().map(|(stream, _)| stream).map_err(file("accept at", path))
        };
        let agent = accept(&agent, &agent_path)?;
        let qmp = Qmp::new(accept(&qmp, &qmp_path)?);
        // QEMU that does not like its arguments may say so only after it has connected.
        let qmp = qmp.map_err(|error| if qemu.wait_end(SETTLE_LIMIT) { failed() } else { error })?;
        // QEMU answers commands once the machine is complete: it has read the RAM disk and is connected. So whatever ends us
        // from now on leaves no folder behind.
        drop(folder);
        let agent = Agent::new(Arc::clone(&qemu), agent, deadline, spec.silence_limit);
        let (agent, hello) = agent.map_err(file("talk at", &agent_path))?.ok_or_else(failed)?;
        Ok(Running { qmp, agent, hello, boot_time: begun.elapsed(), qemu })
    }

    /// Folders that must stay visible in the guest although it has a /tmp and a /run of its own.
    fn keep(&self) -> Result<Vec<PathBuf>, Error> {
        let project = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).map(Path::to_owned);
        let programs = self.guest.parent().map(Path::to_owned);
        let mut keep = Vec::new();
        for folder in [project, programs, Some(self.debian.folder.clone())].into_iter().flatten() {
            let hidden = ["/tmp", "/run", "/dev/shm"].iter().any(|top| folder.starts_with(top));
            if !hidden || !folder.exists() || keep.contains(&folder) {
                continue;
            }
            if folder.display().to_string().contains(char::is_whitespace) {
                return Err(Error::Spec(format!("white space in the folder's name {}", folder.display())));
            }
            keep.push(folder);
        }
        Ok(keep)
    }
}

/// Devices of ours sit at the end of bus 0, out of the way of the caller's NICs.
fn slot(tag: &str) -> &'static str {
    match tag {
        ROOT_TAG => "addr=1d.0",
        TOOLS_TAG => "addr=1c.0",
        _ => "addr=1b.0",
    }
}

/// QEMU takes a comma for the end of a value, unless it is doubled.
fn option_value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// What belongs to one start of QEMU. The order of the fields is the order in which they go.
#[derive(Debug)]
struct Running {
    qmp: Qmp,
    agent: Arc<Agent>,
    hello: Hello,
    boot_time: Duration,
    qemu: Arc<Qemu>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Commands that still run elsewhere share the process: they must not keep it alive.
        self.qemu.kill();
        self.qemu.wait_end(SHUTDOWN_LIMIT);
    }
}

/// A running guest. Dropping it ends QEMU.
#[derive(Debug)]
pub struct Vm {
    bed: Bed,
    spec: Spec,
    running: Running,
}

impl Vm {
    /// Boots a guest from what `cargo xtask test` prepared; see [`Bed::boot`].
    ///
    /// # Errors
    /// Those of [`Bed::from_env`] and [`Bed::boot`].
    pub fn boot(spec: &Spec) -> Result<Self, Error> {
        Bed::from_env()?.boot(spec)
    }

    /// A command to be run in the guest.
    pub fn command(&self, program: &str) -> Command {
        Command::new(Arc::clone(&self.running.agent), program, self.spec.command_limit)
    }

    /// Runs a command to its end, whatever its exit code.
    ///
    /// # Errors
    /// Those of [`Command::output`].
    pub fn run<T: AsRef<str>>(&self, words: impl IntoIterator<Item = T>) -> Result<Output, Error> {
        let mut words = words.into_iter();
        let program = words.next().ok_or_else(|| Error::Start("no program named".to_owned()))?;
        self.command(program.as_ref()).args(words.map(|word| word.as_ref().to_owned())).output()
    }

    /// Runs a shell script that must end with code 0; gives its standard output.
    ///
    /// # Errors
    /// Those of [`Command::run`].
    pub fn sh(&self, script: &str) -> Result<String, Error> {
        Ok(self.command("sh").args(["-euc", script]).run()?.text())
    }

    /// Writes a file in the guest, with the folders above it.
    ///
    /// # Errors
    /// [`Error::Start`] with the guest's words, [`Error::Died`], [`Error::Hung`].
    pub fn write_file(&self, path: impl Into<PathBuf>, mode: u32, contents: &[u8]) -> Result<(), Error> {
        let path = path.into();
        let agent = &self.running.agent;
        let (number, frames) = agent.begin(&Frame::WriteFile(WriteFile { path: path.clone(), mode }))?;
        for chunk in contents.chunks(CHUNK) {
            agent.send(number, &Frame::Stdin(chunk.to_vec()))?;
        }
        agent.send(number, &Frame::EndOfStdin)?;
        let limit = self.spec.command_limit;
        match agent.receive(&frames, Some(Instant::now() + limit))? {
            Some(Frame::Exit(_)) => Ok(()),
            Some(Frame::Failed(why)) => Err(Error::Start(why)),
            Some(other) => Err(Error::Start(format!("the agent answered {other:?}"))),
            None => Err(Error::Timeout { command: format!("write {}", path.display()), limit }),
        }
    }

    /// Loads a kernel module in the guest, with all that it needs. Most come by themselves when they are needed.
    ///
    /// # Errors
    /// Those of [`Command::run`].
    pub fn modprobe(&self, module: &str) -> Result<(), Error> {
        self.command("/run/vm-guest/modprobe").arg(module).run().map(drop)
    }

    /// QEMU's control socket.
    pub fn qmp(&self) -> &Qmp {
        &self.running.qmp
    }

    /// Plugs a NIC in: into a root port that the machine was built with, or (`pc`) a slot of bus 0. The guest notices a moment later.
    ///
    /// # Errors
    /// [`Error::Spec`], [`Error::Qmp`].
    pub fn plug(&self, nic: &Nic) -> Result<(), Error> {
        let bus = self.spec.bus(nic)?;
        let object = |pairs: Vec<(&'static str, String)>| -> Map<String, Value> {
            let typed = |value: String| match value.as_str() {
                "on" => Value::Bool(true),
                "off" => Value::Bool(false),
                _ => Value::String(value),
            };
            pairs.into_iter().map(|(key, value)| (key.to_owned(), typed(value))).collect()
        };
        let mut netdev = object(nic.netdev());
        // netdev_add is strict: a hub's number is a number.
        if let Some(number) =
            netdev.get("hubid").and_then(Value::as_str).and_then(|text| text.parse::<u32>().ok())
        {
            netdev.insert("hubid".to_owned(), number.into());
        }
        self.qmp().execute("netdev_add", Value::Object(netdev))?;
        self.qmp().device_add(Value::Object(object(nic.device(&bus))))
    }

    /// Unplugs a NIC and waits until the guest has let it go.
    ///
    /// # Errors
    /// [`Error::Qmp`], [`Error::NoEvent`].
    pub fn unplug(&self, nic: &Nic) -> Result<(), Error> {
        let id = nic.id();
        self.qmp().device_del(&id)?;
        self.qmp().wait_event("DEVICE_DELETED", UNPLUG_LIMIT, |data| {
            data.get("device").and_then(Value::as_str) == Some(&id)
        })?;
        self.qmp().execute("netdev_del", serde_json::json!({ "id": nic.netdev_id() })).map(drop)
    }

    /// Shuts the guest down properly and boots it anew, with the NICs of its [`Spec`]. Only the persistent folder survives.
    ///
    /// # Errors
    /// Those of [`Bed::boot`].
    pub fn reboot(&mut self) -> Result<(), Error> {
        // A guest that does not shut down is killed below.
        if self.running.agent.send(0, &Frame::Reboot).is_ok() {
            self.running.qemu.wait_end(SHUTDOWN_LIMIT);
        }
        self.power_cycle()
    }

    /// Cuts the guest's power and boots it anew.
    ///
    /// # Errors
    /// Those of [`Bed::boot`].
    pub fn power_cycle(&mut self) -> Result<(), Error> {
        self.running.qemu.kill();
        self.running.qemu.wait_end(SHUTDOWN_LIMIT);
        self.running = self.bed.start(&self.spec)?;
        self.set_up_management()
    }

    /// Waits until the guest is gone, for one that is expected to panic or switch itself off.
    ///
    /// # Errors
    /// [`Error::Hung`] when it is still there after `limit`.
    pub fn wait_end(&self, limit: Duration) -> Result<(), Error> {
        if self.running.qemu.wait_end(limit) {
            return Ok(());
        }
        Err(Error::Hung { silent: limit, console: self.running.qemu.last_words() })
    }

    /// Asks the guest whether it is there.
    ///
    /// # Errors
    /// [`Error::Died`], [`Error::Hung`].
    pub fn ping(&self, limit: Duration) -> Result<(), Error> {
        self.running.agent.ping(limit)
    }

    /// The last `lines` lines of its console.
    pub fn console_tail(&self, lines: usize) -> Vec<String> {
        self.running.qemu.console(lines).0
    }

    /// How long it took from nothing until the guest took commands.
    pub fn boot_time(&self) -> Duration {
        self.running.boot_time
    }

    /// Identity of this boot, as the kernel made it up.
    pub fn boot_id(&self) -> &str {
        &self.running.hello.boot_id
    }

    /// Release of its kernel.
    pub fn kernel(&self) -> &str {
        &self.running.hello.kernel
    }

    /// Number of the QEMU process on the host.
    pub fn qemu_pid(&self) -> u32 {
        self.running.qemu.pid()
    }

    /// What it was made from.
    pub fn bed(&self) -> &Bed {
        &self.bed
    }

    fn set_up_management(&self) -> Result<(), Error> {
        for nic in self.spec.nics.iter().filter(|nic| nic.default_route) {
            self.command("sh").args(["-euc", MANAGEMENT, "sh"]).arg(nic.address.to_string()).run()?;
        }
        Ok(())
    }
}

/// Whether a process of this number exists on the host.
pub fn process_exists(pid: u32) -> bool {
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_some_and(|pid| rustix::process::test_kill_process(pid) != Err(Errno::SRCH))
}
