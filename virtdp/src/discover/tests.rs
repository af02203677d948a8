use clap::Parser;
use linux::Netns;
use linux::testing::Tree;

use super::*;
use crate::cli::Arguments;

/// Runs a test in a network namespace of its own that has the loopback interface, with a sysfs that shows it. Time stands still until
/// everybody waits for it.
fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce(Tree, Settings) -> F + Send) {
    let work = || {
        let tree = Tree::new();
        tree.interface(None, "lo", 1);
        let folder = tempfile::tempdir().unwrap();
        let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
        let (state, sysfs) = (path(folder.path()), path(tree.path()));
        let line = ["virtdp", "--kubelet-dir", &state, "--state-dir", &state, "--sysfs", &sysfs];
        let settings = Arguments::try_parse_from(line).unwrap().settings();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.unwrap().block_on(test(tree, settings));
    };
    Netns::create().unwrap().run(work).unwrap();
}

#[test]
fn what_no_event_told_is_seen_by_looking_again() {
    on_a_node(async |tree, settings| {
        let (sight, mut seen) = watch::channel(Sight::Unknown);
        let stop = CancellationToken::new();
        let (_config, config) = watch::channel(Arc::default());
        let metrics = crate::observe::Metrics::default();
        let task = tokio::spawn(follow(settings, config, sight, metrics, stop.clone()));
        let mut devices = async || {
            seen.changed().await.unwrap();
            match &*seen.borrow() {
                Sight::Clear(survey) => survey.nics.iter().map(|seen| seen.nic.id.to_string()).collect(),
                other => vec![format!("{other:?}")],
            }
        };
        assert_eq!(devices().await, Vec::<String>::new());
        // The kernel says nothing of what is done to a folder.
        tree.virtio_nic("pci0000:00/0000:00:0a.0", "virtio2");
        assert_eq!(devices().await, ["0000:00:0a.0"]);
        tree.unplug("pci0000:00/0000:00:0a.0");
        assert_eq!(devices().await, Vec::<String>::new());
        stop.cancel();
        task.await.unwrap();
    });
}
