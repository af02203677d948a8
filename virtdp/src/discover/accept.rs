//! `virtdp accept ID`: the operator's word that the NIC which sits there now is the right one.

use std::io::Write;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use nic::DeviceId;
use nic::identity::Known;

use super::identity::{ATTEMPTS, PATIENCE, permanent_mac};
use super::read::Reader;
use crate::cli::Settings;

/// Puts the NIC that sits at `device` now into the journal of identities. A running agent sees it within a second.
///
/// # Errors
/// There is no such NIC, its MAC cannot be seen, or the journal cannot be read or written.
pub(crate) fn run(settings: &Settings, device: &DeviceId) -> Result<()> {
    // What is offered does not matter here.
    let survey = Reader::new(settings).read(&Arc::default()).context("the node cannot be read")?;
    let seen = survey.nics.iter().find(|seen| seen.nic.id == *device);
    let seen = seen.with_context(|| format!("there is no NIC {device} on this node"))?;
    let is = permanent_mac(seen).with_context(|| {
        format!("which NIC {device} is cannot be seen: its interface is not in the node's network namespace, or names no MAC")
    })?;
    let known = Known { permanent_mac: is, boot_id: linux::boot_id()? };
    let journal = ledger::Identities::at(&settings.state);
    for _ in 0..ATTEMPTS {
        let old = journal.read()?;
        let was = old.get(device).map(|known| known.permanent_mac);
        let mut new = old.clone();
        new.insert(device.clone(), known.clone());
        if was == Some(is) || journal.replace(&old, &new, PATIENCE)? {
            let mut out = anstream::stdout().lock();
            match was {
                Some(was) if was == is => writeln!(out, "{device} is the NIC {is}, as is known")?,
                Some(was) => writeln!(out, "{device} is the NIC {is} from now on; it was {was}")?,
                None => writeln!(out, "{device} is the NIC {is} from now on")?,
            }
            return Ok(());
        }
    }
    bail!("somebody else keeps writing the journal of identities")
}
