use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::bail;
use tokio::net::UnixListener;

use super::*;

/// Does what a command's name says.
#[derive(Default)]
struct Node {
    running: Arc<AtomicUsize>,
}

/// Counts what runs, also when it is dropped.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn status() -> Status {
    Status {
        ready: true,
        pid: 7,
        node_name: "n".to_owned(),
        server: "http://127.0.0.1:1".to_owned(),
        kubeconfig: PathBuf::from("/k"),
        kubelet_dir: PathBuf::from("/kubelet"),
        kubelet_running: true,
        cni_conf_dir: PathBuf::from("/cni"),
        log: PathBuf::new(),
        pods: 3,
    }
}

impl Handler for Node {
    async fn status(&self) -> Status {
        status()
    }

    async fn exec(&self, exec: Exec, mut streams: Streams) -> anyhow::Result<i32> {
        self.running.fetch_add(1, Ordering::SeqCst);
        let _running = Running(Arc::clone(&self.running));
        match exec.command.first().map(String::as_str) {
            // Writes back what it reads; a resize is told on standard error.
            Some("cat") => {
                while let Some(input) = streams.input.recv().await {
                    match input {
                        Input::Bytes(bytes) => streams.output.stdout(&bytes).await?,
                        Input::Resize(size) => {
                            streams
                                .output
                                .stderr(format!("{}x{}", size.rows, size.columns).as_bytes())
                                .await?;
                        }
                        Input::End => break,
                    }
                }
                Ok(0)
            }
            Some("much") => {
                streams.output.stdout(&vec![b'x'; 3 * LONGEST + 5]).await?;
                Ok(42)
            }
            Some("for-ever") => std::future::pending().await,
            _ => bail!("no such program"),
        }
    }

    async fn logs(&self, logs: Logs, output: Output) -> anyhow::Result<()> {
        output.stdout(format!("{}/{}\n", logs.namespace, logs.pod).as_bytes()).await?;
        Ok(())
    }

    async fn restart_kubelet(&self) -> anyhow::Result<()> {
        bail!("it does not come up")
    }

    async fn shutdown(&self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Serves a node in a folder while `work` runs in a thread, as a command would in its process.
fn with_node<T: Send>(work: impl FnOnce(&Path) -> T + Send, check: impl FnOnce(&Node)) -> T {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = Arc::new(Node::default());
    let listener = {
        let _inside = runtime.enter();
        UnixListener::bind(crate::options::control_socket(dir.path())).unwrap()
    };
    let serving = runtime.spawn(serve(listener, Arc::clone(&node)));
    let outcome = work(dir.path());
    check(&node);
    serving.abort();
    outcome
}

fn exec(command: &str) -> Request {
    Request::Exec(Exec {
        namespace: "default".to_owned(),
        pod: "a".to_owned(),
        container: None,
        command: vec![command.to_owned()],
        stdin: true,
        terminal: None,
    })
}

#[test]
fn a_question_gets_its_answer() {
    let answer =
        with_node(|dir| Connection::open(dir, &Request::Status).unwrap().answer::<Status>().unwrap(), |_| {});
    assert_eq!(answer, status());
}

#[test]
fn input_goes_in_output_comes_out_and_the_code_is_passed_on() {
    let (code, out, err) = with_node(
        |dir| {
            let connection = Connection::open(dir, &exec("cat")).unwrap();
            let input = connection.input();
            input.send(&vec![b'y'; LONGEST + 1]).unwrap();
            input.resize(WindowSize { rows: 50, columns: 132 }).unwrap();
            input.end().unwrap();
            let (mut out, mut err) = (Vec::new(), Vec::new());
            (connection.run(&mut out, &mut err).unwrap(), out, err)
        },
        |_| {},
    );
    assert_eq!((code, out.len(), err.as_slice()), (0, LONGEST + 1, b"50x132".as_slice()));
}

#[test]
fn all_output_arrives_before_the_exit_code() {
    let (code, length) = with_node(
        |dir| {
            let mut out = Vec::new();
            let code = Connection::open(dir, &exec("much")).unwrap().run(&mut out, &mut Vec::new()).unwrap();
            (code, out.len())
        },
        |_| {},
    );
    assert_eq!((code, length), (42, 3 * LONGEST + 5));
}

#[test]
fn what_runs_for_a_client_ends_when_the_client_is_gone() {
    let until = |node: &Node, wanted: usize| {
        let begun = std::time::Instant::now();
        while node.running.load(Ordering::SeqCst) != wanted {
            assert!(begun.elapsed() < std::time::Duration::from_secs(10), "{wanted} should run");
            std::thread::yield_now();
        }
    };
    let connection =
        with_node(|dir| Some(Connection::open(dir, &exec("for-ever")).unwrap()), |node| until(node, 1));
    drop(connection);
    with_node(|dir| drop(Connection::open(dir, &exec("for-ever")).unwrap()), |node| until(node, 0));
}

#[test]
fn a_refusal_is_told_in_the_nodes_own_words() {
    let (exec, restart) = with_node(
        |dir| {
            let exec = Connection::open(dir, &exec("nothing")).unwrap().run(&mut Vec::new(), &mut Vec::new());
            let restart = Connection::open(dir, &Request::RestartKubelet).unwrap().answer::<()>();
            (exec.unwrap_err().to_string(), restart.unwrap_err().to_string())
        },
        |_| {},
    );
    assert_eq!((exec.as_str(), restart.as_str()), ("no such program", "it does not come up"));
}

#[test]
fn logs_are_output_and_an_end() {
    let request = Request::Logs(Logs {
        namespace: "default".to_owned(),
        pod: "a".to_owned(),
        container: None,
        follow: false,
        tail: None,
    });
    let out = with_node(
        |dir| {
            let mut out = Vec::new();
            Connection::open(dir, &request).unwrap().run(&mut out, &mut Vec::new()).unwrap();
            out
        },
        |_| {},
    );
    assert_eq!(out, b"default/a\n");
}

#[test]
fn the_server_ends_after_a_shutdown_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = {
        let _inside = runtime.enter();
        UnixListener::bind(crate::options::control_socket(dir.path())).unwrap()
    };
    let serving = runtime.spawn(serve(listener, Arc::new(Node::default())));
    Connection::open(dir.path(), &Request::Status).unwrap().answer::<Status>().unwrap();
    assert!(!serving.is_finished());
    Connection::open(dir.path(), &Request::Shutdown).unwrap().answer::<()>().unwrap();
    let ended =
        runtime.block_on(async { tokio::time::timeout(std::time::Duration::from_secs(10), serving).await });
    ended.unwrap().unwrap().unwrap();
}

#[test]
fn no_node_is_told_apart_from_a_broken_one() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Connection::open(dir.path(), &Request::Status);
    assert!(matches!(open(), Err(Error::NoNode { .. })));
    // What a node that was killed leaves behind.
    drop(std::os::unix::net::UnixListener::bind(crate::options::control_socket(dir.path())).unwrap());
    assert!(matches!(open(), Err(Error::NoNode { .. })));
    std::fs::remove_file(crate::options::control_socket(dir.path())).unwrap();
    let listener =
        std::os::unix::net::UnixListener::bind(crate::options::control_socket(dir.path())).unwrap();
    let dying = std::thread::spawn(move || drop(listener.accept()));
    assert!(matches!(
        open().and_then(Connection::answer::<Status>),
        Err(Error::Broken { .. } | Error::Connect { .. })
    ));
    dying.join().unwrap();
}

#[test]
fn a_request_of_another_version_is_answered_with_advice() {
    use std::io::{Read, Write};
    let text = with_node(
        |dir| {
            let mut stream =
                std::os::unix::net::UnixStream::connect(crate::options::control_socket(dir)).unwrap();
            stream.write_all(b"{\"request\": \"fly\"}\n").unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            answer
        },
        |_| {},
    );
    assert_eq!(text[0], FrameKind::Error.byte());
    assert!(String::from_utf8_lossy(&text).contains("same version of virtsim"));
}

#[test]
fn headers_that_no_client_writes_are_refused() {
    for kind in [FrameKind::Stdin, FrameKind::Exit, FrameKind::Answer] {
        assert_eq!(parse_header(header(kind, 513)).unwrap(), (kind, 513));
    }
    assert!(parse_header([9, 0, 0, 0, 0]).is_err());
    assert!(parse_header(header(FrameKind::Stdin, LONGEST + 1)).is_err());
}
