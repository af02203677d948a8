//! Running the delegates: forwards for ADD, backwards for DEL and when an ADD fails.

use std::path::Path;

use cni::delegate::Plugins;
use cni::{Code, Error, Success, Verb, Version};

use crate::record::{Progress, Record, Step, Store};
use crate::{report, routes};

/// Attaches all networks of a planned record, or none.
///
/// The runtime is given the cluster network's result, as it is. CRI-O takes every address of a result for an address of
/// the pod, and a CHECK or DEL of plugins after us compares the result with the pod's first interface. What the other
/// networks returned is in the record, from where it gets into the pod's annotation.
pub(crate) fn attach(
    mut record: Record,
    store: &Store,
    plugins: &Plugins,
    device_info: &Path,
) -> Result<Success, Error> {
    for index in 0..record.steps.len() {
        if let Err(error) = attach_step(&mut record, index, store, plugins) {
            return Err(undo(record, error, store, plugins));
        }
    }
    record.network_status = report::network_status(&record, device_info);
    if let Err(error) = routes::choose(&record).and_then(|()| store.write(&record)) {
        return Err(undo(record, error, store, plugins));
    }
    Ok(record.steps.first().and_then(Step::result).unwrap_or_default())
}

fn attach_step(record: &mut Record, index: usize, store: &Store, plugins: &Plugins) -> Result<(), Error> {
    let Some(step) = record.steps.get_mut(index) else { return Ok(()) };
    step.progress = Progress::Begun;
    store.write(record)?;
    let Some(step) = record.steps.get(index) else { return Ok(()) };
    let attachment = record.attachment(step, Some(&record.netns));
    let added = step.network_with_device().and_then(|network| network.add(plugins, &attachment));
    let result = added.map_err(|error| error.within(record.place(step)))?;
    if let Some(step) = record.steps.get_mut(index) {
        step.progress = Progress::Attached(result.to_value(Version::LATEST));
    }
    Ok(())
}

/// Takes back what was done. The error stays what it was; what cannot be taken back is said in its details and stays in
/// the record for the DEL that the runtime sends next.
fn undo(record: Record, error: Error, store: &Store, plugins: &Plugins) -> Error {
    let netns = record.netns.clone();
    match detach(record, store, plugins, Some(&netns)) {
        Ok(()) => error,
        Err(failure) => error.and_also("undoing failed, too", &failure),
    }
}

/// Detaches, in reverse order, all networks whose delegates may have run, and forgets the container. After an error it
/// goes on; the record then keeps what is left to do.
pub(crate) fn detach(
    mut record: Record,
    store: &Store,
    plugins: &Plugins,
    netns: Option<&Path>,
) -> Result<(), Error> {
    let mut left = Vec::new();
    let mut outcomes = Vec::new();
    for step in record.steps.iter().rev() {
        if step.progress == Progress::Planned {
            continue;
        }
        let attachment = record.attachment(step, netns);
        let deleted = step
            .network_with_device()
            .and_then(|network| network.del(plugins, &attachment, step.result().as_ref()));
        if let Err(error) = deleted {
            outcomes.push(Err(error.within(record.place(step))));
            left.push(step.clone());
        }
    }
    if left.is_empty() {
        return store.remove(&record.container_id);
    }
    left.reverse();
    record.steps = left;
    record.network_status = Vec::new();
    outcomes.push(store.write(&record));
    Error::all(outcomes)
}

/// Checks all networks; those whose version has no CHECK have nothing to say.
pub(crate) fn check(record: &Record, plugins: &Plugins, netns: &Path) -> Result<(), Error> {
    for step in &record.steps {
        let network = step.network_with_device()?;
        if network.version() < Verb::Check.since() {
            continue;
        }
        let Some(result) = step.result() else {
            let message = format!("{} was never attached", record.place(step));
            return Err(Error::new(Code::UNKNOWN_CONTAINER, message));
        };
        network
            .check(plugins, &record.attachment(step, Some(netns)), Some(&result))
            .map_err(|error| error.within(record.place(step)))?;
    }
    Ok(())
}
