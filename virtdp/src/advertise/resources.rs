//! Which resources are registered: each on a socket of its own, started and stopped as lists come and go. What stays is left alone.

use std::collections::BTreeMap;
use std::sync::Arc;

use nic::ResourceName;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::desk::{Desk, List, Lists};
use super::{Subject, keep_registered};
use crate::cli::Settings;
use crate::observe::View;

/// A resource that is registered, or waits for the kubelet to be.
struct Registered {
    list: watch::Sender<List>,
    stop: CancellationToken,
}

/// Keeps all resources registered until `stop`.
pub(crate) async fn register(
    settings: Settings,
    mut lists: watch::Receiver<Lists>,
    desk: Desk,
    view: View,
    stop: CancellationToken,
) {
    let mut running: BTreeMap<ResourceName, Registered> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        // Without one clear look at the node there is nothing to say, and too short a list would cost running pods their NICs.
        let wanted = lists.borrow_and_update().clone();
        if let Some(wanted) = wanted {
            let gone: Vec<ResourceName> =
                running.keys().filter(|resource| !wanted.contains_key(resource)).cloned().collect();
            for resource in gone {
                if let Some(registered) = running.remove(&resource) {
                    info!(%resource, "withdrawn: it is not configured any more, and no pod has a NIC of it");
                    registered.stop.cancel();
                    // If it came back while its old stream is open, the end of that would take the new one with it.
                    while let Some(ended) = tasks.join_next().await {
                        match ended {
                            Ok(ended) if ended == resource => break,
                            Ok(_) => {}
                            Err(_) => return,
                        }
                    }
                    view.metrics().ends(&resource);
                }
            }
            for (resource, list) in wanted.iter() {
                if let Some(registered) = running.get(resource) {
                    registered.list.send_if_modified(|old| {
                        let differs = old != list;
                        *old = Arc::clone(list);
                        differs
                    });
                    continue;
                }
                let (sender, receiver) = watch::channel(Arc::clone(list));
                let registered = Registered { list: sender, stop: stop.child_token() };
                let subject = Subject { resource: resource.clone(), list: receiver };
                let (desk, view, stop) = (desk.clone(), view.clone(), registered.stop.clone());
                let task = keep_registered(settings.clone(), subject, desk, view, stop);
                let name = resource.clone();
                tasks.spawn(async move {
                    task.await;
                    name
                });
                running.insert(resource.clone(), registered);
            }
        }
        tokio::select! {
            changed = lists.changed() => if changed.is_err() { break },
            () = stop.cancelled() => break,
            // It ends by itself only if it panicked: then so do we, and are started anew.
            Some(_) = tasks.join_next() => break,
        }
    }
    // Whoever waits for us waits for the streams to be closed.
    running.values().for_each(|registered| registered.stop.cancel());
    while tasks.join_next().await.is_some() {}
}
