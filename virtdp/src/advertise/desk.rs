//! The task that owns what is offered. It hears of new looks at the node and of allocations, and hands the list on.

use std::collections::BTreeMap;
use std::sync::Arc;

use ledger::Notes;
use nic::ResourceName;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::offers::{Given, Offer, Offers, Refusal};
use super::released::Released;
use super::remembered::Remembered;
use crate::allocate::{Allocators, checkpoint};
use crate::cli::Settings;
use crate::discover::Sight;

/// What is offered as one resource, in the order of addresses.
pub(crate) type List = Arc<Vec<Offer>>;
/// What is offered as which resource; `None` until something is known.
pub(crate) type Lists = Option<Arc<BTreeMap<ResourceName, List>>>;

/// The way to the desk.
#[derive(Clone, Debug)]
pub(crate) struct Desk(mpsc::Sender<Request>);

struct Request {
    resource: ResourceName,
    ids: Vec<String>,
    reply: oneshot::Sender<Result<Vec<Offer>, Refusal>>,
}

/// The agent is stopping.
#[derive(Debug)]
pub(crate) struct Closed;

impl Desk {
    pub(crate) fn new() -> (Desk, Requests) {
        let (sender, receiver) = mpsc::channel(16);
        (Desk(sender), Requests(receiver))
    }

    /// Gives devices to a container, see [`Offers::allocate`].
    pub(crate) async fn allocate(
        &self,
        resource: ResourceName,
        ids: Vec<String>,
    ) -> Result<Result<Vec<Offer>, Refusal>, Closed> {
        let (reply, answer) = oneshot::channel();
        self.0.send(Request { resource, ids, reply }).await.map_err(|_| Closed)?;
        answer.await.map_err(|_| Closed)
    }
}

/// What the desk is asked.
pub(crate) struct Requests(mpsc::Receiver<Request>);

/// Runs the desk until `stop`.
pub(crate) async fn run(
    settings: Settings,
    mut sight: watch::Receiver<Sight>,
    mut requests: Requests,
    lists: watch::Sender<Lists>,
    stop: CancellationToken,
) {
    let mut allocators = Allocators::new(&settings);
    let mut remembered = Remembered::read(Notes::at(&settings.state));
    let mut offers: Option<Offers> = None;
    let mut expiry: Option<Instant> = None;
    let mut complaint = None;
    let mut released = Released::default();
    loop {
        // A time that was set stands, however much happens until then.
        let expires = offers.as_ref().and_then(|offers| offers.expires(Instant::now()));
        expiry = expires.map(|expires| expiry.map_or(expires, |set| set.min(expires)));
        tokio::select! {
            changed = sight.changed() => {
                if changed.is_err() {
                    return;
                }
                let seen = sight.borrow_and_update().clone();
                // The time of the event, not of the wait that it ended: that may have begun long before.
                let now = Instant::now();
                match (seen, &mut offers) {
                    (Sight::Clear(survey), Some(offers)) => offers.update(&survey, now),
                    (Sight::Clear(survey), none) => {
                        let is_ours = |resource: &ResourceName| {
                            survey.config.pools.of(resource).is_some() || remembered.has(resource)
                        };
                        let given = given(&settings, is_ours, &mut complaint).unwrap_or_else(|| {
                            remembered.doubt();
                            Given::new()
                        });
                        let begun = none.insert(Offers::begin(&survey, &given, now));
                        allocators.begin(begun.in_use(&given), begun.lists().into_keys()).await;
                    }
                    (Sight::Blind(why), Some(offers)) => offers.go_blind(&why),
                    // Without one clear look there is nothing to offer, and what pods have must not be missing.
                    (Sight::Blind(_), None) | (Sight::Unknown, _) => {}
                }
            }
            request = requests.0.recv() => {
                let Some(Request { resource, ids, reply }) = request else { return };
                let answer = match &mut offers {
                    Some(offers) => offers.allocate(&resource, &ids, Instant::now()),
                    None => {
                        let first = ids.first().map_or("", String::as_str);
                        Err(Refusal::unknown(first, ": the node was not looked at yet".to_owned()))
                    }
                };
                // The kubelet may have hung up.
                let _ = reply.send(answer);
            }
            () = sleep_until(expiry.unwrap_or_else(Instant::now)), if expiry.is_some() => {
                expiry = None;
                if let Some(offers) = &mut offers {
                    let given = given(&settings, |resource| offers.is_ours(resource), &mut complaint);
                    // Where nobody can tell what pods have, any of it may be theirs.
                    if let Some(mut given) = given {
                        let doubtful = offers.hanging_on(&given, Instant::now());
                        released.strike(&settings.kubelet.pod_resources_socket(), &doubtful, &mut given).await;
                        offers.expire(&given, Instant::now());
                    }
                }
            }
            () = stop.cancelled() => return,
        }
        if let Some(offers) = &offers {
            let new: BTreeMap<ResourceName, List> =
                offers.lists().into_iter().map(|(resource, list)| (resource, Arc::new(list))).collect();
            let old = lists.borrow().clone();
            if old.as_deref() != Some(&new) {
                remembered.keep(new.keys()).await;
                // Before the kubelet knows of a device, what others read about it is there.
                allocators.follow(old.as_deref(), &new).await;
                lists.send_replace(Some(Arc::new(new)));
            }
        }
    }
}

/// What the kubelet has given to pods of resources that are ours, by its checkpoint; none if that cannot be read, which is said once.
fn given(
    settings: &Settings,
    is_ours: impl Fn(&ResourceName) -> bool,
    complaint: &mut Option<String>,
) -> Option<Given> {
    match checkpoint::given(&settings.kubelet.checkpoint()) {
        Ok(mut given) => {
            *complaint = None;
            given.retain(|_, resource| is_ours(resource));
            Some(given)
        }
        Err(error) => {
            let reason = format!("{error:#}");
            if complaint.as_ref() != Some(&reason) {
                warn!(
                    reason,
                    "the kubelet's checkpoint cannot be read: what is not offered any more stays in the list"
                );
            }
            *complaint = Some(reason);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use config::Config;
    use nic::{Health, Membership, Needs, Pool, Standing};
    use tokio::time::sleep;

    use super::*;
    use crate::advertise::offers::{IN_FLIGHT_FOR, WITHDRAWN_FOR};
    use crate::discover::{Seen, Survey, sample};

    const BLINK: Duration = Duration::from_millis(100);

    fn pool() -> Pool {
        Pool::empty("kernel.org/virt".parse().unwrap())
    }

    fn node(devices: &[&str]) -> Sight {
        let seen = |device: &&str| {
            let membership = Membership { pool: Arc::new(pool()), needs: Needs::default(), also: Vec::new() };
            let standing = Standing::Offered(Health::Healthy);
            Seen { nic: sample::nic(device), link: None, standing, membership: Some(membership), told: None }
        };
        let config = Arc::new(Config::of_pool(pool()));
        Sight::Clear(Arc::new(Survey {
            nics: devices.iter().map(seen).collect(),
            config,
            ..Survey::default()
        }))
    }

    fn settings(root: &Path) -> Settings {
        Settings {
            config: None,
            pool: pool(),
            kubelet: kubelet_api::KubeletDir::at(root),
            registration: crate::advertise::Way::default(),
            state: root.to_owned(),
            device_info: root.to_owned(),
            sysfs: root.to_owned(),
            node_addresses: Vec::new(),
            api_servers: Vec::new(),
            offer_lifeline: std::collections::BTreeSet::new(),
            listen: None,
            cdi: root.to_owned(),
            extras: crate::allocate::Extras::default(),
            events: None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn times_are_counted_from_the_event_however_long_it_was_quiet_before() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(root.path());
        let (sight, sight_out) = watch::channel(Sight::Unknown);
        let (lists, lists_out) = watch::channel(None);
        let (desk, requests) = Desk::new();
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(settings, sight_out, requests, lists, stop.clone()));
        let listed = || -> Vec<(String, bool)> {
            let lists: Lists = lists_out.borrow().clone();
            lists.unwrap()[&pool().resource]
                .iter()
                .map(|offer| (offer.id.to_string(), offer.ill.is_none()))
                .collect()
        };
        let given = ("0000:00:09.0".to_owned(), false);
        let free = ("0000:00:0a.0".to_owned(), false);

        sight.send_replace(node(&["0000:00:09.0", "0000:00:0a.0"]));
        sleep(IN_FLIGHT_FOR * 3).await;
        desk.allocate(pool().resource, vec!["0000:00:09.0".into()]).await.unwrap().unwrap();
        sleep(IN_FLIGHT_FOR / 2).await;
        sight.send_replace(node(&[]));
        sleep(WITHDRAWN_FOR - BLINK).await;
        assert_eq!(listed(), [given.clone(), free]);
        sleep(BLINK * 2).await;
        assert_eq!(listed(), std::slice::from_ref(&given));
        sleep(IN_FLIGHT_FOR / 2 - WITHDRAWN_FOR - BLINK * 2).await;
        assert_eq!(listed(), std::slice::from_ref(&given));
        sleep(WITHDRAWN_FOR).await;
        assert_eq!(listed(), []);

        stop.cancel();
        task.await.unwrap();
    }
    #[tokio::test(start_paused = true)]
    async fn what_is_gone_leaves_the_list_in_time_and_stays_where_nobody_can_tell_what_pods_have() {
        let root = tempfile::tempdir().unwrap();
        let checkpoint = kubelet_api::KubeletDir::at(root.path()).checkpoint();
        std::fs::create_dir_all(checkpoint.parent().unwrap()).unwrap();
        std::fs::write(&checkpoint, "{").unwrap();
        let (sight, sight_out) = watch::channel(Sight::Unknown);
        let (lists, lists_out) = watch::channel(None);
        let (_desk, requests) = Desk::new();
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(settings(root.path()), sight_out, requests, lists, stop.clone()));
        let listed = || {
            let lists: Lists = lists_out.borrow().clone();
            lists.unwrap()[&pool().resource].len()
        };
        sight.send_replace(node(&["0000:00:09.0"]));
        sleep(BLINK).await;
        // The node changes all the time.
        let look = async || {
            sight.send_replace(node(&[]));
            sleep(BLINK).await;
        };
        for _ in 0..60 {
            look().await;
        }
        assert_eq!(listed(), 1);
        std::fs::remove_file(&checkpoint).unwrap();
        for _ in 0..15 {
            look().await;
        }
        assert_eq!(listed(), 0);

        stop.cancel();
        task.await.unwrap();
    }
}
