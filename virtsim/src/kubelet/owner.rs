//! The one task that owns the device manager's state. Others send it work and wait for the answer.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kubelet_api::deviceplugin::device_plugin_client::DevicePluginClient;
use kubelet_api::tonic::transport::Channel;
use nic::ResourceName;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::devices::{Devices, PluginId};
use super::types::Capacities;
use crate::chain;

/// The kubelet stops: there is nobody to ask.
#[derive(Debug)]
pub(super) struct Stopped;

/// What the task owns.
pub(super) struct State {
    pub(super) devices: Devices,
    /// Connections, for as long as the device manager uses them.
    plugins: BTreeMap<PluginId, Plugin>,
    /// Which connection the registration server has under a resource's name.
    registered: BTreeMap<ResourceName, PluginId>,
    next: u64,
    old_stream_ends_new: bool,
    /// Whether the checkpoint must be written.
    changed: bool,
}

/// A connection to a plugin.
#[derive(Clone)]
pub(super) struct Plugin {
    pub(super) client: DevicePluginClient<Channel>,
    /// Cancelled when the kubelet closes the connection.
    pub(super) closed: CancellationToken,
}

impl State {
    pub(super) fn new(devices: Devices, old_stream_ends_new: bool) -> Self {
        State {
            devices,
            plugins: BTreeMap::new(),
            registered: BTreeMap::new(),
            next: 0,
            old_stream_ends_new,
            changed: false,
        }
    }

    /// The server takes note of a plugin before it connects to it. One of the same name is overwritten, not ended.
    pub(super) fn register(&mut self, name: &ResourceName) -> PluginId {
        self.next += 1;
        let id = PluginId(self.next);
        self.registered.insert(name.clone(), id);
        id
    }

    /// The connection failed: whoever is registered under the name is forgotten.
    pub(super) fn deregister(&mut self, name: &ResourceName) {
        self.registered.remove(name);
    }

    pub(super) fn connected(
        &mut self,
        name: &ResourceName,
        id: PluginId,
        plugin: Plugin,
        options: kubelet_api::deviceplugin::DevicePluginOptions,
    ) {
        self.plugins.insert(id, plugin);
        self.devices.connected(name, id, options);
    }

    pub(super) fn listed(&mut self, name: &ResourceName, devices: Vec<kubelet_api::deviceplugin::Device>) {
        self.devices.listed(name, devices);
        self.changed = true;
    }

    /// The stream of `id` ended. The server looks for the client by the resource's name, and so disconnects another one
    /// where the plugin has registered anew before its old stream ended. Then, and where another registration failed
    /// meanwhile, nobody closes the connection of `id` itself: in the latter case Allocate still uses it.
    pub(super) fn stream_ended(&mut self, name: &ResourceName, id: PluginId, now: Instant) {
        if self.old_stream_ends_new || self.registered.get(name) == Some(&id) {
            self.disconnect(name, now);
        }
    }

    /// Disconnects whoever is registered under the name.
    pub(super) fn disconnect(&mut self, name: &ResourceName, now: Instant) {
        if let Some(id) = self.registered.remove(name) {
            self.close(id);
            self.devices.disconnected(name, now);
        }
    }

    fn close(&mut self, id: PluginId) {
        if let Some(plugin) = self.plugins.remove(&id) {
            plugin.closed.cancel();
        }
    }

    pub(super) fn plugin(&self, id: PluginId) -> Option<Plugin> {
        self.plugins.get(&id).cloned()
    }

    /// The plugin that allocates a resource, or why there is none.
    pub(super) fn plugin_of(&self, name: &ResourceName) -> Result<Plugin, String> {
        let id = self.devices.plugin(name)?;
        self.plugin(id).ok_or_else(|| format!("endpoint {name} has been stopped"))
    }

    /// The checkpoint must be written.
    pub(super) fn changed(&mut self) {
        self.changed = true;
    }
}

type Job = Box<dyn FnOnce(&mut State) + Send>;

/// Sends work to the owner.
#[derive(Clone)]
pub(super) struct Owner {
    jobs: mpsc::Sender<Job>,
}

impl Owner {
    pub(super) fn channel() -> (Owner, mpsc::Receiver<Job>) {
        let (jobs, receiver) = mpsc::channel(64);
        (Owner { jobs }, receiver)
    }

    /// Has `work` done on the state, and returns what it returns.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut State) -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |state| {
            // Whoever asked may have gone; the work counts all the same.
            let _ = reply.send(work(state));
        });
        self.jobs.send(job).await.map_err(|_| Stopped)?;
        answer_of(&self.jobs, answer).await.ok_or(Stopped)
    }
}

/// The answer to what was sent to `to`; none if nobody reads it any more. What is sent in the moment in which the receiver goes stays in
/// the channel, and with it the way for the answer, for as long as there is a sender: whoever waits must look at both.
pub(super) async fn answer_of<M, T>(to: &mpsc::Sender<M>, answer: oneshot::Receiver<T>) -> Option<T> {
    tokio::select! {
        biased;
        answer = answer => answer.ok(),
        () = to.closed() => None,
    }
}

/// Owns the state until `stop`. After each piece of work, capacity and checkpoint are brought up to date, before the
/// next one begins.
pub(super) async fn own(
    mut state: State,
    mut jobs: mpsc::Receiver<Job>,
    capacities: watch::Sender<Capacities>,
    checkpoint: PathBuf,
    stop: CancellationToken,
) {
    loop {
        capacities.send_if_modified(|known| {
            let now = state.devices.capacities();
            let differ = *known != now;
            *known = now;
            differ
        });
        let expiry = state.devices.next_expiry();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            job = jobs.recv() => match job {
                Some(job) => job(&mut state),
                None => return,
            },
            () = at(expiry) => {
                if state.devices.expire(Instant::now()) {
                    state.changed();
                }
            }
        }
        if std::mem::take(&mut state.changed) {
            write(&checkpoint, &state);
        }
    }
}

/// Waits until then; for ever where there is no such time.
pub(super) async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn write(checkpoint: &std::path::Path, state: &State) {
    let (Some(folder), Some(name)) =
        (checkpoint.parent(), checkpoint.file_name().and_then(|name| name.to_str()))
    else {
        return;
    };
    // The real one goes on, too: only a restart would show what is missing.
    if let Err(error) =
        linux::files::write_atomically(folder, name, &state.devices.to_checkpoint().to_bytes())
    {
        warn!(error = chain(&error), "the checkpoint is not up to date");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_while_the_receiver_goes_is_not_waited_for() {
        let (to, receiver) = mpsc::channel(1);
        let permit = to.reserve().await.unwrap();
        drop(receiver);
        let (reply, answer) = oneshot::channel::<()>();
        permit.send(reply);
        assert_eq!(answer_of(&to, answer).await, None);
    }
}
