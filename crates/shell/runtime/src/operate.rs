//! What the port asks for, step by step.
//!
//! Owns: start, stop, removal, logs, and the images' calls with their bounds in time.
//! Does not know: how a container is written to disk or kept up with.
//! Invariant: an operation that is given up half-way can be asked for again.

use std::sync::Arc;
use std::time::Duration;

use base::Millis;
use bytes::Bytes;
use futures::StreamExt;
use ports::runtime::{BoxStream, LogLine, LogOptions, PullItem, RegistryAuth, RuntimeError};
use shim::files;
use shim::proto::Request;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::Inner;
use crate::binary::ShimBinary;
use crate::container::{Container, Phase};
use crate::fail::{blocking, io_failed, refused};
use crate::image::{archive, pull};
use crate::logs::{FOLLOW_PERIOD, LogReader};
use crate::sweep::{keep_layers, sweep_later};

/// Returns once the program has been executed.
pub(crate) async fn start(
    container: &Arc<Container>,
    binary: &Arc<ShimBinary>,
) -> Result<(), RuntimeError> {
    let turn = container.turn.lock().await;
    let own_start = container.phase() == Phase::Created;
    if own_start {
        // Goes on even when the caller loses interest, so that the shim is always followed.
        let (container, binary) = (Arc::clone(container), Arc::clone(binary));
        let launched = tokio::spawn(async move { container.launch(&binary).await });
        launched.await.map_err(|_| refused("start the container", "the starting task ended"))??;
    }
    drop(turn);
    let settled = |phase: &Phase| !matches!(phase, Phase::Created | Phase::Starting);
    let phase = tokio::time::timeout(START_LIMIT, container.wait_for(settled))
        .await
        .map_err(|_| refused("start the container", "the shim does not answer"))?;
    match phase {
        Phase::Failed { error, .. } if own_start => Err(error),
        Phase::Lost if own_start => Err(refused("start the container", shim_words(container))),
        _ => Ok(()),
    }
}

/// What the shim said before it died.
fn shim_words(container: &Container) -> String {
    let log = std::fs::read_to_string(container.dir.join(files::SHIM_LOG)).unwrap_or_default();
    let last = log.lines().rev().find(|line| !line.trim().is_empty());
    last.map_or_else(|| "the shim ended without a word".to_owned(), |line| line.trim().to_owned())
}

/// Signal, grace, kill.
pub(crate) async fn stop(container: &Arc<Container>, grace: Millis) -> Result<(), RuntimeError> {
    let _turn = container.turn.lock().await;
    match container.phase() {
        Phase::Starting | Phase::Running { .. } => {}
        _ => return Ok(()),
    }
    container.request(Request::Signal(container.record.stop_signal)).await;
    let ended = container.wait_for(Phase::has_ended);
    if tokio::time::timeout(grace.as_duration(), ended).await.is_ok() {
        return Ok(());
    }
    kill(container).await
}

/// Kills everything; returns when the end is known.
async fn kill(container: &Arc<Container>) -> Result<(), RuntimeError> {
    container.request(Request::KillAll).await;
    let ended = container.wait_for(Phase::has_ended);
    if tokio::time::timeout(SHIM_KILL_LIMIT, ended).await.is_ok() {
        return Ok(());
    }
    // The shim does not do it. Its own death is noticed by whoever follows it.
    let this = Arc::clone(container);
    blocking("kill the container", move || this.kill_group()).await?;
    tokio::time::timeout(KILL_LIMIT, container.wait_for(Phase::has_ended))
        .await
        .map(drop)
        .map_err(|_| refused("kill the container", "its shim does not report the end"))
}

/// Nothing is left afterwards.
pub(crate) async fn remove(inner: &Arc<Inner>, id: &str) -> Result<(), RuntimeError> {
    let Some(container) = inner.container(id) else { return Ok(()) };
    let _turn = container.turn.lock().await;
    if matches!(container.phase(), Phase::Starting | Phase::Running { .. }) {
        kill(&container).await?;
    }
    let (this, owner) = (Arc::clone(&container), Arc::clone(inner));
    blocking("remove the container", move || {
        this.wait_for_shim(SHIM_END_LIMIT)?;
        this.kill_group()?;
        // First the record: a run directory without one is swept at the next start.
        owner.store.discard(&this.dir);
        match std::fs::remove_dir_all(&this.run_dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(io_failed("remove the run directory", &this.run_dir)(error));
            }
            _ => {}
        }
        owner.forget(&this.record.id);
        this.end_waiting();
        Ok(())
    })
    .await?;
    sweep_later(inner);
    Ok(())
}

/// Lines of the output, and with `follow` until the container has ended.
pub(crate) fn logs(
    container: Result<Arc<Container>, RuntimeError>,
    options: LogOptions,
) -> BoxStream<Result<LogLine, RuntimeError>> {
    let (sender, receiver) = mpsc::channel(STREAM_ITEMS_MAX);
    tokio::spawn(async move {
        let result = match container {
            Ok(container) => send_logs(&container, options, &sender).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            let _ = sender.send(Err(error)).await;
        }
    });
    receiver_stream(receiver)
}

async fn send_logs(
    container: &Arc<Container>,
    options: LogOptions,
    sender: &mpsc::Sender<Result<LogLine, RuntimeError>>,
) -> Result<(), RuntimeError> {
    let follow = options.follow;
    let path = container.dir.join(files::LOG);
    let open_path = path.clone();
    let mut reader = blocking("open the log", move || {
        LogReader::open(&open_path, options).map_err(io_failed("open the log", &open_path))
    })
    .await?;
    loop {
        // Looked at before reading: what was printed before the end is read after it.
        let phase = container.phase();
        let ended = phase.has_ended() || phase == Phase::Created && !follow;
        let step = io_failed("read the log", &path);
        let (back, batch) = blocking("read the log", move || {
            let batch = reader.next_batch().map_err(step)?;
            Ok((reader, batch))
        })
        .await?;
        reader = back;
        let idle = batch.is_empty();
        for line in batch {
            if sender.send(Ok(line)).await.is_err() {
                return Ok(());
            }
        }
        if reader.has_ended() || idle && (!follow || ended) {
            return Ok(());
        }
        if idle {
            tokio::select! {
                biased;
                () = sender.closed() => return Ok(()),
                () = tokio::time::sleep(FOLLOW_PERIOD) => {}
            }
        }
    }
}

/// Progress, then the record or the error.
pub(crate) fn pull_image(
    inner: &Arc<Inner>,
    reference: String,
    auth: Option<RegistryAuth>,
) -> BoxStream<Result<PullItem, RuntimeError>> {
    let (sender, receiver) = mpsc::channel(STREAM_ITEMS_MAX);
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        let result = {
            let _kept = keep_layers(&inner).await;
            let pull = pull::pull(
                &inner.store,
                &reference,
                auth,
                &inner.options.insecure_registries,
                &sender,
            );
            tokio::select! {
                biased;
                // Nobody wants it any more.
                () = sender.closed() => return,
                result = pull => result,
            }
        };
        let _ = sender.send(result.map(|image| PullItem::Done(image.record()))).await;
        sweep_later(&inner);
    });
    receiver_stream(receiver)
}

/// Progress, then a record for each image of the archive or the error.
pub(crate) fn load_image(
    inner: &Arc<Inner>,
    stream: BoxStream<std::io::Result<Bytes>>,
) -> BoxStream<Result<PullItem, RuntimeError>> {
    let (sender, receiver) = mpsc::channel(STREAM_ITEMS_MAX);
    let inner = Arc::clone(inner);
    tokio::spawn(async move {
        if let Err(error) = load(&inner, stream, &sender).await {
            let _ = sender.send(Err(error)).await;
        }
        sweep_later(&inner);
    });
    receiver_stream(receiver)
}

async fn load(
    inner: &Arc<Inner>,
    mut stream: BoxStream<std::io::Result<Bytes>>,
    sender: &mpsc::Sender<Result<PullItem, RuntimeError>>,
) -> Result<(), RuntimeError> {
    let _kept = keep_layers(inner).await;
    let dir = inner.store.ingest_path()?;
    let path = dir.join("archive");
    let step = io_failed("receive the archive", &path);
    let received = async {
        let mut file = tokio::fs::File::create(&path).await.map_err(&step)?;
        loop {
            let next = tokio::time::timeout(CHUNK_LIMIT, stream.next())
                .await
                .map_err(|_| refused("receive the archive", "the sender has stopped"))?;
            let Some(chunk) = next else { break };
            file.write_all(&chunk.map_err(&step)?).await.map_err(&step)?;
        }
        file.flush().await.map_err(&step)
    };
    let loaded = match received.await {
        Ok(()) => {
            let (store, progress) = (Arc::clone(&inner.store), sender.clone());
            blocking("load the archive", move || {
                archive::load(&store, &path, &mut |item| {
                    // A slow reader misses steps, not the end.
                    let _ = progress.try_send(Ok(PullItem::Progress(item)));
                })
            })
            .await
        }
        Err(error) => Err(error),
    };
    inner.store.discard(&dir);
    for image in loaded? {
        let _ = sender.send(Ok(PullItem::Done(image.record()))).await;
    }
    Ok(())
}

/// Docker's lines.
pub(crate) async fn remove_image(
    inner: &Arc<Inner>,
    reference: String,
    force: bool,
) -> Result<Vec<String>, RuntimeError> {
    let this = Arc::clone(inner);
    let lines = blocking("remove the image", move || {
        let in_use = |image_id: &str| {
            let containers = this.all_containers();
            let user = containers.iter().find(|container| container.record.image_id == image_id);
            user.map(|container| container.record.id.clone())
        };
        this.store.remove(&reference, force, in_use)
    })
    .await?;
    sweep_later(inner);
    Ok(lines)
}

fn receiver_stream<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> BoxStream<T> {
    Box::pin(futures::stream::unfold(receiver, |mut receiver| async move {
        let item = receiver.recv().await?;
        Some((item, receiver))
    }))
}

/// From the spawn of the shim to the executed program.
const START_LIMIT: Duration = Duration::from_secs(50);

/// A shim kills within milliseconds unless it or the machine is in trouble.
const SHIM_KILL_LIMIT: Duration = Duration::from_secs(10);
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// After its report a shim removes the groups and ends.
const SHIM_END_LIMIT: Duration = Duration::from_secs(15);

/// Between two pieces of an archive.
const CHUNK_LIMIT: Duration = Duration::from_secs(60);

/// Items waiting for a slow reader.
const STREAM_ITEMS_MAX: usize = 256;
