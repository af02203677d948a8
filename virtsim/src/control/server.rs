//! The node's end of the control socket.

use std::future::Future;
use std::io;
use std::sync::Arc;

use serde::Serialize;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{debug, warn};

use super::{
    Exec, Frame, FrameKind, HEADER, LONGEST, Logs, Request, Status, WindowSize, header, malformed,
    parse_header,
};

/// What a node does when it is asked. An error's text, with its causes, is what the user reads.
pub trait Handler: Send + Sync + 'static {
    /// How the node is.
    fn status(&self) -> impl Future<Output = Status> + Send;

    /// Runs a command in a container and gives its exit code: 126 where it cannot be executed, 127 where there is no such
    /// program, 128 and the signal's number where it was killed. All output must have been sent before.
    fn exec(&self, exec: Exec, streams: Streams) -> impl Future<Output = anyhow::Result<i32>> + Send;

    /// Sends what a container wrote.
    fn logs(&self, logs: Logs, output: Output) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Restarts the kubelet; returns when it serves again.
    fn restart_kubelet(&self) -> impl Future<Output = anyhow::Result<()>> + Send;

    /// Ends everything that the node made; returns when nothing is left. The node's process ends after the answer.
    fn shutdown(&self) -> impl Future<Output = anyhow::Result<()>> + Send;
}

/// A command's input and output. The request's future is dropped when the client is gone.
#[derive(Debug)]
pub struct Streams {
    /// What the client sends. Ends when it is gone.
    pub input: mpsc::Receiver<Input>,
    /// Where output goes.
    pub output: Output,
}

/// What a client sends to a running command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// Standard input.
    Bytes(Vec<u8>),
    /// The end of standard input.
    End,
    /// The terminal's new size.
    Resize(WindowSize),
}

/// Where output goes. It waits while the client is slow.
#[derive(Clone, Debug)]
pub struct Output(mpsc::Sender<Frame>);

/// The client does not listen any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client is gone")]
pub struct Gone;

impl Output {
    /// Writes to the client's standard output.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn stdout(&self, bytes: &[u8]) -> Result<(), Gone> {
        self.send(FrameKind::Stdout, bytes).await
    }

    /// Writes to the client's standard error.
    ///
    /// # Errors
    /// The client is gone.
    pub async fn stderr(&self, bytes: &[u8]) -> Result<(), Gone> {
        self.send(FrameKind::Stderr, bytes).await
    }

    async fn send(&self, kind: FrameKind, bytes: &[u8]) -> Result<(), Gone> {
        for chunk in bytes.chunks(LONGEST) {
            self.0.send((kind, chunk.to_vec())).await.map_err(|_| Gone)?;
        }
        Ok(())
    }
}

/// Frames that wait for a slow client.
const QUEUE: usize = 16;

/// Answers clients until one has the node shut down, or the future is dropped, which ends what runs for them.
///
/// # Errors
/// The listener fails.
pub async fn serve(listener: UnixListener, handler: Arc<impl Handler>) -> io::Result<()> {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted?;
                clients.spawn(client(stream, Arc::clone(&handler)));
            }
            Some(ended) = clients.join_next() => match ended {
                Ok(Ok(After::Shutdown)) => return Ok(()),
                Ok(Ok(After::GoOn)) => {}
                Ok(Err(error)) => debug!(%error, "control connection ended early"),
                Err(error) => warn!(%error, "control request failed"),
            },
        }
    }
}

/// Whether the node goes on after a request.
enum After {
    GoOn,
    Shutdown,
}

async fn client(stream: UnixStream, handler: Arc<impl Handler>) -> io::Result<After> {
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let request = match request(&mut reader).await? {
        Ok(request) => request,
        Err(error) => {
            let text =
                format!("the request is not understood ({error}): is this the same version of virtsim?");
            write(&mut writer, &(FrameKind::Error, text.into_bytes())).await?;
            return Ok(After::GoOn);
        }
    };
    let (output, mut frames) = mpsc::channel(QUEUE);
    let (sender, input) = mpsc::channel(QUEUE);
    let shutting_down = request == Request::Shutdown;
    let mut answering = std::pin::pin!(answer(request, handler, Streams { input, output: Output(output) }));
    let mut reading = std::pin::pin!(read_input(reader, sender));
    let mut reading_ended = false;
    let last = loop {
        tokio::select! {
            Some(frame) = frames.recv() => write(&mut writer, &frame).await?,
            last = &mut answering => break last,
            gone = &mut reading, if !reading_ended => {
                gone?;
                reading_ended = true;
                // What was begun for good is brought to its end; what ran for the client alone ends here.
                if !shutting_down {
                    return Ok(After::GoOn);
                }
            }
        }
    };
    frames.close();
    while let Some(frame) = frames.recv().await {
        write(&mut writer, &frame).await?;
    }
    let answered = write(&mut writer, &last).await;
    // A shutdown that could not undo everything is one all the same: the node serves nothing any more.
    if shutting_down { Ok(After::Shutdown) } else { answered.map(|()| After::GoOn) }
}

async fn request(reader: &mut BufReader<OwnedReadHalf>) -> io::Result<serde_json::Result<Request>> {
    let longest = u64::try_from(LONGEST).unwrap_or(u64::MAX);
    let mut line = Vec::new();
    reader.take(longest).read_until(b'\n', &mut line).await?;
    Ok(serde_json::from_slice(&line))
}

/// Ends when the client is gone.
async fn read_input(mut reader: BufReader<OwnedReadHalf>, sender: mpsc::Sender<Input>) -> io::Result<()> {
    loop {
        let mut header = [0; HEADER];
        match reader.read_exact(&mut header).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let (kind, length) = parse_header(header)?;
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload).await?;
        let input = match kind {
            FrameKind::Stdin if payload.is_empty() => Input::End,
            FrameKind::Stdin => Input::Bytes(payload),
            FrameKind::Resize => Input::Resize(
                WindowSize::from_bytes(&payload)
                    .ok_or_else(|| malformed("a window size of the wrong length".to_owned()))?,
            ),
            kind => return Err(malformed(format!("an unexpected {kind:?} frame"))),
        };
        // A command that does not read any more is no reason to stop noticing that the client goes.
        let _ = sender.send(input).await;
    }
}

async fn answer(request: Request, handler: Arc<impl Handler>, streams: Streams) -> Frame {
    let outcome = match request {
        Request::Status => to_answer(&handler.status().await),
        Request::Exec(exec) => {
            handler.exec(exec, streams).await.map(|code| (FrameKind::Exit, code.to_be_bytes().to_vec()))
        }
        Request::Logs(logs) => {
            handler.logs(logs, streams.output).await.map(|()| (FrameKind::Exit, 0_i32.to_be_bytes().to_vec()))
        }
        Request::RestartKubelet => match handler.restart_kubelet().await {
            Ok(()) => to_answer(&()),
            Err(error) => Err(error),
        },
        Request::Shutdown => match handler.shutdown().await {
            Ok(()) => to_answer(&()),
            Err(error) => Err(error),
        },
    };
    outcome.unwrap_or_else(|error| (FrameKind::Error, format!("{error:#}").into_bytes()))
}

fn to_answer(value: &impl Serialize) -> anyhow::Result<Frame> {
    Ok((FrameKind::Answer, serde_json::to_vec(value)?))
}

async fn write(writer: &mut OwnedWriteHalf, (kind, payload): &Frame) -> io::Result<()> {
    // Output was split before; only an endless error message can be too long.
    let payload = payload.get(..LONGEST).unwrap_or(payload);
    let mut bytes = header(*kind, payload.len()).to_vec();
    bytes.extend_from_slice(payload);
    writer.write_all(&bytes).await
}
