//! Queues, rings and offloads of an interface: ethtool's ioctl, which any socket takes, for its own network namespace.
//!
//! Source: include/uapi/linux/ethtool.h, net/ethtool/ioctl.c.

use std::ffi::c_void;

use nic::{Channels, IfName, Offloads, Rings, Tunable};
use rustix::io::Errno;
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode, ioctl};

use super::Socket;
use crate::{Error, fault};

const SIOCETHTOOL: Opcode = 0x8946;
const ETHTOOL_GRINGPARAM: u32 = 0x10;
const ETHTOOL_SRINGPARAM: u32 = 0x11;
const ETHTOOL_GFEATURES: u32 = 0x3a;
const ETHTOOL_SFEATURES: u32 = 0x3b;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_SCHANNELS: u32 = 0x3d;
/// How many words the kernel has for its offloads (net/ethtool/common.h, ETHTOOL_DEV_FEATURE_WORDS).
const WORDS: u32 = 2;

impl Socket {
    /// The queues of an interface; `None` where its driver does not tell.
    ///
    /// # Errors
    /// The kernel refuses for another reason: there is no such interface.
    pub fn channels(&mut self, name: &IfName) -> Result<Option<Tunable<Channels>>, Error> {
        self.tuning("read the queues", name, ETHTOOL_GCHANNELS)
    }

    /// Sets how many queues an interface uses.
    ///
    /// # Errors
    /// The kernel refuses: EINVAL above what the driver allows, EOPNOTSUPP where it allows nothing.
    pub fn set_channels(&mut self, name: &IfName, channels: Channels) -> Result<(), Error> {
        self.tune("set the queues", name, ETHTOOL_SCHANNELS, channels.into())
    }

    /// The rings of an interface; `None` where its driver does not tell.
    ///
    /// # Errors
    /// The kernel refuses for another reason: there is no such interface.
    pub fn rings(&mut self, name: &IfName) -> Result<Option<Tunable<Rings>>, Error> {
        self.tuning("read the rings", name, ETHTOOL_GRINGPARAM)
    }

    /// Sets how long the rings of an interface are.
    ///
    /// # Errors
    /// The kernel refuses: EINVAL above what the driver allows, EOPNOTSUPP where it allows nothing.
    pub fn set_rings(&mut self, name: &IfName, rings: Rings) -> Result<(), Error> {
        self.tune("set the rings", name, ETHTOOL_SRINGPARAM, rings.into())
    }

    /// The offloads that are wanted of an interface; `None` where the kernel knows more of them than fit.
    ///
    /// # Errors
    /// The kernel refuses: there is no such interface.
    pub fn offloads(&mut self, name: &IfName) -> Result<Option<Offloads>, Error> {
        Ok(self.features(name)?.map(|(_, wanted)| wanted))
    }

    /// Switches the offloads of an interface. Whether the driver does all that is wanted is another matter.
    ///
    /// # Errors
    /// The kernel refuses: there is no such interface.
    pub fn set_offloads(&mut self, name: &IfName, Offloads([low, high]): Offloads) -> Result<(), Error> {
        let Some(([can_low, can_high], _)) = self.features(name)? else { return Ok(()) };
        let mut parameters = [ETHTOOL_SFEATURES, WORDS, can_low, low, can_high, high];
        self.ethtool("set the offloads", name, &mut parameters)
            .map_err(|errno| failed("set the offloads", name, errno))
    }

    /// Which offloads can be switched, and which of these are wanted.
    fn features(&mut self, name: &IfName) -> Result<Option<([u32; 2], Offloads)>, Error> {
        let mut parameters = [ETHTOOL_GFEATURES, WORDS, 0, 0, 0, 0, 0, 0, 0, 0];
        self.ethtool("read the offloads", name, &mut parameters)
            .map_err(|errno| failed("read the offloads", name, errno))?;
        // For each word: what can be switched, what is wanted, what is active, what cannot be switched.
        let [_, words, can_low, low, _, _, can_high, high, _, _] = parameters;
        Ok((words == WORDS).then_some(([can_low, can_high], Offloads([can_low & low, can_high & high]))))
    }

    fn tuning<T: From<[u32; 4]>>(
        &mut self,
        what: &str,
        name: &IfName,
        command: u32,
    ) -> Result<Option<Tunable<T>>, Error> {
        let mut parameters = [command, 0, 0, 0, 0, 0, 0, 0, 0];
        match self.ethtool(what, name, &mut parameters) {
            Ok(()) => {
                let [_, a, b, c, d, e, f, g, h] = parameters;
                Ok(Some(Tunable { most: [a, b, c, d].into(), now: [e, f, g, h].into() }))
            }
            Err(Errno::OPNOTSUPP) => Ok(None),
            Err(errno) => Err(failed(what, name, errno)),
        }
    }

    fn tune(&mut self, what: &str, name: &IfName, command: u32, now: [u32; 4]) -> Result<(), Error> {
        let [e, f, g, h] = now;
        // The limits are the driver's and not read.
        self.ethtool(what, name, &mut [command, 0, 0, 0, 0, e, f, g, h])
            .map_err(|errno| failed(what, name, errno))
    }

    /// One call with the structure of a command, whole: `struct ethtool_channels` and `struct ethtool_ringparam` are a command, four limits
    /// and four values; `struct ethtool_gfeatures` and `ethtool_sfeatures` say themselves how long they are.
    fn ethtool(&mut self, what: &str, name: &IfName, parameters: &mut [u32]) -> rustix::io::Result<()> {
        let mut request = Request { name: [0; 16], data: parameters.as_mut_ptr(), rest: [0; 16] };
        // An interface's name has 15 bytes at most, so a NUL stays.
        for (to, from) in request.name.iter_mut().zip(name.as_str().bytes()) {
            *to = from;
        }
        let call = || {
            // SAFETY: SIOCETHTOOL takes a `struct ifreq`, which `Request` is, whose `ifr_data` leads to the parameters of the command; they
            // are as long as these commands' structures, initialised, and outlive the call.
            #[allow(unsafe_code)]
            unsafe {
                ioctl(&*self, Ethtool(&mut request))
            }
        };
        fault::step(|| format!("{what} of {name}"), |errno| errno, call)
    }
}

fn failed(what: &str, name: &IfName, errno: Errno) -> Error {
    Error::Transport { what: format!("{what} of {name}"), source: errno.into() }
}

/// `struct ifreq` of netdevice(7) with `ifr_data`; its union has 24 bytes where a pointer has eight.
#[repr(C)]
struct Request {
    name: [u8; 16],
    data: *mut u32,
    rest: [u8; 16],
}

struct Ethtool<'a>(&'a mut Request);

// SAFETY: SIOCETHTOOL reads a `struct ifreq` at the pointer and writes where its `ifr_data` leads to, which both live.
#[allow(unsafe_code)]
unsafe impl Ioctl for Ethtool<'_> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        SIOCETHTOOL
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}
