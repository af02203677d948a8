//! Registration through `plugins_registry/`, with the authority that the real kubelet sends.

use kubelet_api::pluginregistration::registration_server::{Registration, RegistrationServer};
use kubelet_api::pluginregistration::{
    DEVICE_PLUGIN, InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse,
};
use tokio::io::AsyncReadExt;

use super::*;
use crate::kubelet::verbatim::{CallError, authority, call};

struct Introduction {
    info: PluginInfo,
    told: mpsc::UnboundedSender<RegistrationStatus>,
}

#[async_trait]
impl Registration for Introduction {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        self.told.send(request.into_inner()).unwrap();
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// Serves an introduction on `socket` until the task is aborted; the receiver hears what the kubelet made of it.
fn introduce(
    socket: &std::path::Path,
    info: PluginInfo,
) -> (tokio::task::JoinHandle<()>, mpsc::UnboundedReceiver<RegistrationStatus>) {
    let (told, hears) = mpsc::unbounded_channel();
    let listener = bind(socket).unwrap();
    let routes = Routes::new(RegistrationServer::new(Introduction { info, told }));
    let server = tokio::spawn(async move { serve(listener, routes, std::future::pending()).await.unwrap() });
    (server, hears)
}

fn device_plugin(endpoint: &std::path::Path) -> PluginInfo {
    PluginInfo {
        r#type: DEVICE_PLUGIN.to_owned(),
        name: "kernel.org/virt".to_owned(),
        endpoint: endpoint.display().to_string(),
        supported_versions: vec!["v1beta1".to_owned()],
    }
}

async fn hear(hears: &mut mpsc::UnboundedReceiver<RegistrationStatus>) -> RegistrationStatus {
    tokio::time::timeout(DEADLINE, hears.recv()).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_socket_is_asked_told_and_asked_again_only_when_it_is_made_anew() {
    let bench = Bench::start(Options::default()).await;
    let endpoint = bench.folder.path().join("plugin.sock");
    let _plugin = Plugin::start(endpoint.clone(), healthy(&["a"]), Character::default());
    let socket = bench.dir().plugins_registry().join("virtnet@node-reg.sock");
    for _ in 0..2 {
        let (server, mut hears) = introduce(&socket, device_plugin(&endpoint));
        let status = hear(&mut hears).await;
        assert!(status.plugin_registered && status.error.is_empty(), "{status:?}");
        bench.capacity(1, 1).await;
        std::fs::remove_file(&socket).unwrap();
        bench.capacity(1, 0).await;
        assert!(hears.try_recv().is_err(), "it was told twice");
        server.abort();
    }
}

#[tokio::test]
async fn a_plugin_that_is_refused_is_told_why() {
    let bench = Bench::start(Options { dial_timeout: Duration::from_millis(50), ..Options::default() }).await;
    let nowhere = bench.folder.path().join("nowhere.sock");
    let folder = bench.dir().plugins_registry().join("sub");
    std::fs::create_dir(&folder).unwrap();
    let good = device_plugin(&nowhere);
    for (number, (info, reason)) in [
        (
            PluginInfo { r#type: "DRAPlugin".into(), ..good.clone() },
            "no handler registered for plugin type: DRAPlugin",
        ),
        (
            PluginInfo { supported_versions: vec!["v1".into()], ..good.clone() },
            "is not among plugin supported versions",
        ),
        (PluginInfo { name: "virt".into(), ..good.clone() }, r#"the ResourceName "virt" is invalid"#),
        (good, "failed to dial device plugin"),
    ]
    .into_iter()
    .enumerate()
    {
        let (server, mut hears) = introduce(&folder.join(format!("{number}@x.sock")), info);
        let status = hear(&mut hears).await;
        assert!(!status.plugin_registered && status.error.contains(reason), "{status:?} instead of {reason}");
        server.abort();
    }
}

#[tokio::test]
async fn a_plugin_that_is_refused_is_asked_again_until_it_is_taken_in() {
    let bench = Bench::start(Options { dial_timeout: Duration::from_millis(50), ..Options::default() }).await;
    let endpoint = bench.folder.path().join("plugin.sock");
    let socket = bench.dir().plugins_registry().join("virtnet@node-reg.sock");
    let (server, mut hears) = introduce(&socket, device_plugin(&endpoint));
    for _ in 0..2 {
        let status = hear(&mut hears).await;
        assert!(!status.plugin_registered && status.error.contains("failed to dial"), "{status:?}");
    }
    let _plugin = Plugin::start(endpoint, healthy(&["a"]), Character::default());
    bench.capacity(1, 1).await;
    server.abort();
}

/// The trap for plugins: no client of ours would ever show it.
#[tokio::test]
async fn a_server_that_refuses_the_escaped_path_is_found_out() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("virtnet.sock");
    let (server, _hears) = introduce(&plain, device_plugin(&plain));
    let outcome =
        call::<_, PluginInfo>(&plain, "/pluginregistration.Registration/GetInfo", &InfoRequest {}).await;
    assert!(
        matches!(outcome, Err(CallError::Reset { code: 1 } | CallError::GoAway { code: 1 })),
        "tonic takes it now: {outcome:?}"
    );
    let with_at = folder.path().join("virtnet@node.sock");
    let (other, _hears) = introduce(&with_at, device_plugin(&plain));
    let info =
        call::<_, PluginInfo>(&with_at, "/pluginregistration.Registration/GetInfo", &InfoRequest {}).await;
    assert_eq!(info.unwrap(), device_plugin(&plain));
    let unknown =
        call::<_, PluginInfo>(&with_at, "/pluginregistration.Registration/Nothing", &InfoRequest {}).await;
    assert!(matches!(unknown, Err(CallError::Status)), "{unknown:?}");
    server.abort();
    other.abort();
}

#[tokio::test]
async fn the_authority_goes_out_byte_for_byte() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("plugin.sock");
    let listener = bind(&socket).unwrap();
    let asking = {
        let socket = socket.clone();
        tokio::spawn(async move { call::<_, PluginInfo>(&socket, "/a.B/C", &InfoRequest {}).await })
    };
    let (mut stream, _) = listener.accept().await.unwrap();
    let expected = format!(
        ":authority{}{}",
        char::from(u8::try_from(authority(&socket).len()).unwrap()),
        authority(&socket)
    );
    let mut seen = Vec::new();
    while !seen.windows(expected.len()).any(|window| window == expected.as_bytes()) {
        assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0, "{}", String::from_utf8_lossy(&seen));
    }
    drop(stream);
    assert!(matches!(asking.await.unwrap(), Err(CallError::Connection(_))));
}
