//! A kubelet, or whoever else reaches the agent's socket, that sends nonsense: each call is refused or answered for itself, in a few
//! words, and the agent goes on as before.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use kubelet_api::deviceplugin::{
    ContainerPreferredAllocationRequest, Empty, PreStartContainerRequest, PreferredAllocationRequest,
};

use crate::kubelet::{Kubelet, Plugin};
use crate::stage::{Agent, Stage, UPLINK};

const FIRST: &str = "0000:00:09.0";
const SECOND: &str = "0000:00:0a.0";
const BOTH: [&str; 2] = ["0000:00:09.0 Healthy []", "0000:00:0a.0 Healthy []"];
/// More than any node has; as one message they are below gRPC's limit of 4 MiB.
const MANY: usize = 100_000;

fn many() -> Vec<String> {
    (0..MANY).map(|number| format!("{number:04x}:ff:1f.7")).collect()
}

/// A node whose agent offers both NICs.
async fn node() -> (Stage, Kubelet, Agent, Plugin) {
    let stage = Stage::with_spares(&[FIRST, SECOND]);
    let mut kubelet = Kubelet::start(stage.kubelet_dir());
    let agent = stage.start();
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&BOTH).await;
    (stage, kubelet, agent, plugin)
}

/// It gives a NIC away as ever.
async fn works(plugin: &mut Plugin) {
    let answer = plugin.allocate(&[&[FIRST]]).await.unwrap();
    assert_eq!(answer.container_responses[0].envs["PCIDEVICE_KERNEL_ORG_VIRT"], FIRST);
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_that_are_none_are_refused_in_a_few_words_and_nothing_is_given() {
    let (stage, _kubelet, mut agent, mut plugin) = node().await;
    let (sixty_four, long) = ("x".repeat(64), "0000:00:0a.0".repeat(100_000));
    let (all, far_too_many) = (many(), vec![long.clone(); 4]);
    let texts = |ids: &'static [&'static str]| ids.iter().map(ToString::to_string).collect::<Vec<_>>();
    for ids in [
        texts(&["0000:00:1f.7"]),
        texts(&[FIRST, SECOND, UPLINK]),
        texts(&[""]),
        texts(&["0000:00:0A.0"]),
        texts(&["0000:00:0a.0 "]),
        texts(&["\u{1b}[31m\r\n", "\0"]),
        vec![FIRST.to_owned(), sixty_four],
        vec![long],
        all,
        far_too_many,
    ] {
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        // Nor does a good container beside it get anything.
        let refused = plugin.allocate(&[&[FIRST], &ids]).await.unwrap_err();
        let said = refused.message();
        assert!(!said.is_empty() && said.len() < 400 && !said.contains(char::is_control), "{said:?}");
    }
    assert!(!stage.path("devinfo").exists(), "a refused allocation left something");
    let log = agent.log();
    assert!(log.lines().all(|line| line.len() < 2000 && !line.contains('\u{1b}')), "{log}");
    works(&mut plugin).await;
    assert!(agent.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_for_nothing_and_for_the_same_twice_are_answered() {
    let (_stage, _kubelet, _agent, mut plugin) = node().await;
    assert_eq!(plugin.allocate(&[]).await.unwrap().container_responses, []);
    let nothing = plugin.allocate(&[&[]]).await.unwrap().container_responses.remove(0);
    assert!(nothing.devices.is_empty() && nothing.cdi_devices.is_empty());
    let twice = plugin.allocate(&[&[SECOND, FIRST, SECOND], &[SECOND]]).await.unwrap().container_responses;
    let ids: Vec<&str> = twice.iter().map(|one| one.envs["PCIDEVICE_KERNEL_ORG_VIRT"].as_str()).collect();
    assert_eq!(ids, ["0000:00:09.0,0000:00:0a.0", SECOND]);
    for device_ids in [Vec::new(), vec!["0000:00:1f.7".to_owned(), String::new()], many()] {
        plugin.client.pre_start_container(PreStartContainerRequest { device_ids }).await.unwrap();
    }
    works(&mut plugin).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preference_is_never_an_error_since_that_would_fail_the_pod() {
    let (_stage, _kubelet, _agent, mut plugin) = node().await;
    let ask = |available: &[&str], must: &[&str], size| ContainerPreferredAllocationRequest {
        available_device_ids: available.iter().map(ToString::to_string).collect(),
        must_include_device_ids: must.iter().map(ToString::to_string).collect(),
        allocation_size: size,
    };
    let both = [FIRST, SECOND];
    let all = ContainerPreferredAllocationRequest { available_device_ids: many(), ..ask(&[], &[], 2) };
    let requests = [
        (ask(&both, &[], 0), 0),
        (ask(&both, &[], -1), 0),
        (ask(&both, &[], i32::MIN), 0),
        (ask(&both, &[], i32::MAX), 2),
        (ask(&[FIRST, FIRST, ""], &[], 2), 1),
        (ask(&[], &[], 1), 0),
        (ask(&both, &[SECOND], 1), 1),
        (all, 2),
    ];
    for (request, count) in &requests {
        let wanted = PreferredAllocationRequest { container_requests: vec![request.clone()] };
        let answer = plugin.client.get_preferred_allocation(wanted).await.unwrap().into_inner();
        let ids = &answer.container_responses[0].device_ids;
        assert_eq!(ids.len(), *count, "{ids:?}");
        assert!(ids.iter().all(|id| request.available_device_ids.contains(id)), "{ids:?}");
    }
    let together = requests.into_iter().map(|(request, _)| request).collect();
    let wanted = PreferredAllocationRequest { container_requests: together };
    let answer = plugin.client.get_preferred_allocation(wanted).await.unwrap().into_inner();
    assert_eq!(answer.container_responses.len(), 8);
    let none = PreferredAllocationRequest { container_requests: Vec::new() };
    let answer = plugin.client.get_preferred_allocation(none).await.unwrap().into_inner();
    assert_eq!(answer.container_responses, []);
    works(&mut plugin).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_call_and_streams_that_nobody_reads_are_in_nobodys_way() {
    let (stage, mut kubelet, mut agent, mut plugin) = node().await;
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // A frame that is longer than it says, one of an unknown kind, headers that are no HPACK; and nothing more.
    let frames: [&[u8]; 4] = [
        b"\0\0\xff\x04\0\0\0\0\0",
        b"\xff\xff\xff\xee\0\0\0\0\x01",
        b"\0\0\x04\x01\x04\0\0\0\x01\xff\xff\xff\xff",
        b"",
    ];
    for frame in frames {
        let mut stream = UnixStream::connect(&plugin.socket).unwrap();
        stream.write_all(preface).unwrap();
        // It may have hung up already.
        let _ = stream.write_all(frame);
    }
    let mut stream = UnixStream::connect(&plugin.socket).unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    // Whether it hangs up or says something first, it ends this connection.
    let _ = stream.read_to_end(&mut answer);
    let silent = UnixStream::connect(&plugin.socket).unwrap();
    works(&mut plugin).await;

    // Lists are asked for again and again, and nobody reads them.
    let mut unread = Vec::new();
    for _ in 0..100 {
        unread.push(plugin.client.list_and_watch(Empty {}).await.unwrap());
    }
    works(&mut plugin).await;
    stage.ip("link set eth2 up");
    stage.ip("link set eth2-p down");
    plugin.lists(&["0000:00:09.0 Healthy []", "0000:00:0a.0 Unhealthy []"]).await;
    drop(unread);
    works(&mut plugin).await;
    assert_eq!(agent.count(&["registering anew"]), 0);
    // The last one that hears the lists goes in the middle of one: whoever it was, the kubelet is called again.
    drop((plugin, silent));
    let mut plugin = kubelet.plugin().await;
    plugin.lists(&["0000:00:09.0 Healthy []", "0000:00:0a.0 Unhealthy []"]).await;
    works(&mut plugin).await;
    assert!(agent.is_running());
}
