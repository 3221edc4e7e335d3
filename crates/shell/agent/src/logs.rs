//! Sending a task's log lines to a manager that asked for them.
//!
//! Owns: reading through the runtime and batching for the upload.
//! Does not know: who reads. Invariant: an upload that the manager no longer wants ends.

use std::collections::BTreeMap;
use std::future::Future;

use futures::stream::{self, StreamExt};
use ports::runtime::{LogOptions, LogStream, Runtime, RuntimeError};
use tokio::sync::mpsc;
use types::TaskId;
use wire::v1::{LogLine, LogSubscription, LogsPublish};

/// Lines of one message, and bytes after which it is sent.
const LINES_MAX: usize = 256;
const BYTES_MAX: usize = 256 * 1024;

/// Carries published lines to a manager.
pub trait LogUplink: Send + Sync + 'static {
    /// Sends until the stream ends or the manager wants no more.
    fn publish(
        &self,
        address: &str,
        stream: mpsc::Receiver<LogsPublish>,
    ) -> impl Future<Output = ()> + Send;
}

/// Reads all tasks of a subscription at once into `out`, and says when it is done.
pub(crate) async fn read_all<R: Runtime>(
    runtime: &R,
    subscription: LogSubscription,
    out: mpsc::Sender<LogsPublish>,
) {
    let options = LogOptions {
        follow: subscription.follow,
        tail: subscription.tail,
        since: (subscription.since > 0).then_some(base::Timestamp(subscription.since)),
        until: (subscription.until > 0).then_some(base::Timestamp(subscription.until)),
    };
    let tasks: BTreeMap<TaskId, String> = subscription
        .tasks
        .iter()
        .filter_map(|bytes| wire::id::<TaskId>(bytes, "task").ok())
        .map(|id| (id, id.to_string()))
        .collect();
    let streams = tasks.iter().map(|(id, text)| {
        let lines = runtime.logs(text, options.clone());
        lines.map(move |line| (*id, line)).boxed()
    });
    let mut lines = stream::select_all(streams).ready_chunks(LINES_MAX);
    while let Some(chunk) = lines.next().await {
        for message in messages(&subscription, chunk) {
            if out.send(message).await.is_err() {
                return;
            }
        }
    }
    let done = LogsPublish { done: true, ..empty(&subscription) };
    let _ = out.send(done).await;
}

fn empty(subscription: &LogSubscription) -> LogsPublish {
    LogsPublish { subscription: subscription.id.clone(), ..LogsPublish::default() }
}

type Read = (TaskId, Result<ports::runtime::LogLine, RuntimeError>);

/// Messages of bounded size for what was read at once.
fn messages(subscription: &LogSubscription, chunk: Vec<Read>) -> Vec<LogsPublish> {
    let (mut messages, mut current, mut bytes) = (Vec::new(), empty(subscription), 0);
    for (task, line) in chunk {
        match line {
            Ok(line) => {
                bytes += line.data.len();
                current.lines.push(LogLine {
                    task: wire::bytes_of(task.0),
                    stderr: line.stream == LogStream::Stderr,
                    at_ns: line.at_ns,
                    data: line.data,
                    ..LogLine::default()
                });
            }
            // A task whose container was never made has no logs.
            Err(RuntimeError::NoContainer { .. }) => {}
            Err(error) => {
                let warning = format!("logs of task {task}: {error}");
                messages.push(LogsPublish { warning, ..empty(subscription) });
            }
        }
        if bytes >= BYTES_MAX {
            messages.push(std::mem::replace(&mut current, empty(subscription)));
            bytes = 0;
        }
    }
    if !current.lines.is_empty() {
        messages.push(current);
    }
    messages
}
