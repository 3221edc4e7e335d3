//! Waiting until a service is as wanted, with progress as docker shows it.
//!
//! Owns: when waiting ends: all tasks run and stay, they cannot be placed, they keep failing, the
//! time is up, or the user goes on with something else.
//! Does not know: why a task fails; it prints what the daemon says.
//! Invariant: it never waits for ever on something that does not change.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use base::{Millis, Timestamp};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use types::{Service, Slot, SlotKey, TaskState, UpdateState};
use wire::v1;

use crate::args::service::Waiting;
use crate::client::Daemon;
use crate::commands::task::{PsOptions, Shown};
use crate::commands::{now, print_line};
use crate::error::CliError;

/// Waits for the service `id`, called `name` in the texts.
pub(crate) async fn wait(
    daemon: &mut Daemon,
    id: &str,
    name: &str,
    waiting: &Waiting,
) -> Result<(), CliError> {
    let begun = Instant::now();
    let mut judge = Judge::new(now());
    let mut screen = Screen::new(waiting.quiet);
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        let (service, desired, tasks) = observe(daemon, id).await?;
        let verdict = judge.look(&service, desired, &tasks, begun.elapsed());
        screen.show(&verdict, &tasks, &service);
        match verdict.outcome {
            Outcome::Converged => {
                screen.end();
                if !waiting.quiet {
                    print_line(format!("verify: Service {name} converged"))?;
                }
                return Ok(());
            }
            Outcome::Failed(reason) => {
                screen.end();
                return Err(CliError::failed(format!("service {name}: {reason}"))
                    .hint(format!("see `shoal service ps --no-trunc {name}`")));
            }
            Outcome::Wait => {}
        }
        if let Some(limit) = waiting.wait_timeout
            && begun.elapsed() >= limit.as_duration()
        {
            screen.end();
            return Err(timed_out(name, limit, &verdict.waits_for));
        }
        tokio::select! {
            biased;
            _ = &mut interrupted => {
                screen.end();
                print_line("Operation continuing in background.")?;
                return print_line(format!("Use `shoal service ps {name}` to check progress."));
            }
            () = tokio::time::sleep(POLL_PERIOD) => {}
        }
    }
}

fn timed_out(name: &str, limit: Millis, reason: &str) -> CliError {
    let waited = crate::output::human::go_duration(limit);
    CliError::timed_out(format!("service {name} is not as wanted after {waited}: {reason}"))
        .hint(format!("it goes on in the background, see `shoal service ps --no-trunc {name}`"))
}

/// The service, how many tasks it should have, and the tasks there are.
async fn observe(daemon: &mut Daemon, id: &str) -> Result<(Service, u64, Vec<Shown>), CliError> {
    let reference = v1::ObjectRef { r#ref: id.to_owned() };
    let view = daemon.control.get_service(reference).await?.into_inner();
    let request = v1::ListTasksRequest { services: vec![id.to_owned()], ..Default::default() };
    let list = daemon.control.list_tasks(request).await?.into_inner();
    let mut tasks = Vec::new();
    for task in list.tasks {
        tasks.push(Shown::of(task)?);
    }
    Ok((view.service.unwrap_or_default().try_into()?, view.desired, tasks))
}

enum Outcome {
    Wait,
    Converged,
    Failed(String),
}

/// What a look at the service gave.
struct Verdict {
    outcome: Outcome,
    running: u64,
    desired: u64,
    /// Seconds until tasks that run count as stable, while they are watched.
    verify_secs: Option<u64>,
    /// What is still missing, with the reason when there is one.
    waits_for: String,
}

/// Looks at the service again and again and remembers what does not change.
struct Judge {
    /// Failures before that belong to an earlier change.
    since: Timestamp,
    stable_from: Option<Duration>,
    /// Nothing moves, and since when.
    stuck_from: Option<Duration>,
    best: u64,
}

impl Judge {
    fn new(since: Timestamp) -> Self {
        Self { since, stable_from: None, stuck_from: None, best: 0 }
    }

    fn look(
        &mut self,
        service: &Service,
        desired: u64,
        tasks: &[Shown],
        elapsed: Duration,
    ) -> Verdict {
        let current = |task: &&Shown| task.task.revision == service.revision;
        let active: Vec<&Shown> = tasks.iter().filter(|task| task.task.is_active()).collect();
        let is_running = |task: &&&Shown| task.task.status.state == TaskState::Running;
        let up_to_date = active.iter().filter(|task| current(task));
        let running = up_to_date.filter(is_running).count() as u64;
        let outdated = active.iter().any(|task| !current(task));
        let updating =
            service.update.as_ref().is_some_and(|update| update.state == UpdateState::Updating);
        let monitor = service.spec.update.clone().unwrap_or_default().monitor.as_duration();
        let done = running == desired && !outdated && !updating && active.len() as u64 == desired;
        let mut verdict = Verdict {
            outcome: Outcome::Wait,
            running,
            desired,
            verify_secs: None,
            waits_for: reason(service, tasks, self.since)
                .unwrap_or_else(|| format!("{running} of {desired} tasks run")),
        };
        if done {
            let from = *self.stable_from.get_or_insert(elapsed);
            let left = monitor.saturating_sub(elapsed.saturating_sub(from));
            verdict.verify_secs = Some(left.as_secs_f64().ceil() as u64);
            if left.is_zero() {
                verdict.outcome = Outcome::Converged;
            }
            return verdict;
        }
        self.stable_from = None;
        if let Some(reason) = self.hopeless(service, tasks, running, elapsed) {
            verdict.outcome = Outcome::Failed(reason);
        }
        verdict
    }

    /// The reason, when waiting longer would not help.
    fn hopeless(
        &mut self,
        service: &Service,
        tasks: &[Shown],
        running: u64,
        elapsed: Duration,
    ) -> Option<String> {
        if let Some(task) = keeps_failing(service, tasks, self.since) {
            return Some(format!(
                "task {} keeps failing: {}",
                task.name(PsOptions::default()),
                failure(task)
            ));
        }
        let on_the_way = tasks.iter().any(|task| {
            task.task.is_active()
                && (TaskState::Assigned..TaskState::Running).contains(&task.task.status.state)
        });
        let moved = running > self.best;
        self.best = self.best.max(running);
        if moved || on_the_way {
            self.stuck_from = None;
            return None;
        }
        let from = *self.stuck_from.get_or_insert(elapsed);
        if elapsed.saturating_sub(from) < STUCK_AFTER {
            return None;
        }
        reason(service, tasks, self.since)
    }
}

/// Why the service is not as wanted: what its deciders say, else the newest failure.
fn reason(service: &Service, tasks: &[Shown], since: Timestamp) -> Option<String> {
    if !service.reasons.is_empty() {
        let texts: Vec<&str> =
            service.reasons.iter().map(|reason| reason.message.as_str()).collect();
        return Some(texts.join("; "));
    }
    let failed = tasks.iter().filter(|task| is_failure(service, task, since));
    let newest = failed.max_by_key(|task| task.task.status.at)?;
    Some(format!("task {}: {}", newest.name(PsOptions::default()), failure(newest)))
}

fn is_failure(service: &Service, task: &Shown, since: Timestamp) -> bool {
    task.task.revision == service.revision
        && task.task.status.at + CLOCK_SKEW >= since
        && matches!(task.task.status.state, TaskState::Failed | TaskState::Rejected)
}

fn failure(task: &Shown) -> String {
    match (task.error(), task.task.status.exit_code) {
        ("", Some(code)) => format!("exit code {code}"),
        ("", None) => task.task.status.state.name().to_owned(),
        (error, _) => error.to_owned(),
    }
}

/// A task of a slot that failed [`FAILURES_MAX`] times and runs in no attempt.
fn keeps_failing<'a>(service: &Service, tasks: &'a [Shown], since: Timestamp) -> Option<&'a Shown> {
    let mut failures: BTreeMap<SlotKey, Vec<&Shown>> = BTreeMap::new();
    for task in tasks.iter().filter(|task| is_failure(service, task, since)) {
        failures.entry(task.task.slot_key()?).or_default().push(task);
    }
    failures.into_values().find(|list| list.len() >= FAILURES_MAX)?.pop()
}

/// Where progress is drawn: bars on a terminal, lines elsewhere, nothing when quiet.
struct Screen {
    bars: Option<MultiProgress>,
    overall: Option<ProgressBar>,
    slots: BTreeMap<SlotKey, ProgressBar>,
    last: String,
    quiet: bool,
}

impl Screen {
    fn new(quiet: bool) -> Self {
        let on_terminal = io::stdout().is_terminal() && !quiet;
        let bars = on_terminal
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stdout_with_hz(10)));
        let overall = bars.as_ref().map(|bars| bars.add(line("{msg}")));
        Self { bars, overall, slots: BTreeMap::new(), last: String::new(), quiet }
    }

    fn show(&mut self, verdict: &Verdict, tasks: &[Shown], service: &Service) {
        if self.quiet {
            return;
        }
        let mut text =
            format!("overall progress: {} out of {} tasks", verdict.running, verdict.desired);
        let mut countdown = None;
        if let Some(seconds) = verdict.verify_secs.filter(|seconds| *seconds > 0) {
            countdown = Some(format!(
                "verify: Waiting {seconds} seconds to verify that tasks are stable..."
            ));
        } else if !service.reasons.is_empty() {
            text = format!("{text}: {}", verdict.waits_for);
        }
        match (&self.overall, countdown) {
            (Some(overall), Some(countdown)) => overall.set_message(format!("{text}\n{countdown}")),
            (Some(overall), None) => overall.set_message(text),
            // Lines only when something changes: a countdown would fill a log.
            (None, countdown) if text != self.last => {
                // A closed pipe shows at the last line; progress is not worth an error.
                drop(print_line(&text));
                drop(countdown.map(print_line));
                self.last = text;
            }
            (None, _) => {}
        }
        self.show_slots(verdict.desired, tasks, service);
    }

    fn show_slots(&mut self, desired: u64, tasks: &[Shown], service: &Service) {
        let Some(bars) = &self.bars else { return };
        if desired > BARS_MAX {
            return;
        }
        for task in tasks.iter().filter(|task| task.task.is_active()) {
            let (Some(key), true) = (task.task.slot_key(), task.task.revision == service.revision)
            else {
                continue;
            };
            let bar = self.slots.entry(key).or_insert_with(|| {
                let bar = bars.add(line("{prefix}: {msg:10} [{bar:50}]"));
                bar.set_length(STEPS);
                bar
            });
            let head = match task.task.slot {
                Slot::Replica(number) => format!("{number}/{desired}"),
                Slot::Node => task.name(PsOptions::default()),
            };
            bar.set_prefix(head);
            bar.set_position(step(task.task.status.state));
            bar.set_message(task.task.status.state.name());
        }
    }

    fn end(&mut self) {
        for bar in self.slots.values().chain(&self.overall) {
            bar.abandon();
        }
    }
}

fn line(template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    ProgressBar::new(STEPS).with_style(style)
}

/// Docker's numbering of the states on the way: new is 1, running is 9.
fn step(state: TaskState) -> u64 {
    match state {
        TaskState::New => 1,
        TaskState::Pending => 2,
        TaskState::Assigned => 3,
        TaskState::Accepted => 4,
        TaskState::Preparing => 5,
        TaskState::Ready => 7,
        TaskState::Starting => 8,
        _ => STEPS,
    }
}

const POLL_PERIOD: Duration = Duration::from_millis(200);
/// More bars are only a number, as docker's.
const BARS_MAX: u64 = 20;
const STEPS: u64 = 9;
/// A reason that stands this long while nothing moves will not go away by itself.
const STUCK_AFTER: Duration = Duration::from_secs(20);
/// Failures of one slot after which waiting ends.
const FAILURES_MAX: usize = 3;
/// Times of tasks are by their nodes' clocks.
const CLOCK_SKEW: Millis = Millis(2_000);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use base::Id;
    use types::{
        Labels, Meta, Reason, ServiceId, ServiceMode, ServiceSpec, TaskSpec, UpdateConfig,
    };

    use super::*;
    use crate::commands::task::tests::shown;

    fn service(reasons: &[&str]) -> Service {
        let update = UpdateConfig { monitor: Millis(5_000), ..UpdateConfig::default() };
        Service {
            id: ServiceId(Id::from_u128(1).unwrap()),
            meta: Meta::default(),
            spec: Arc::new(ServiceSpec {
                name: "web".into(),
                labels: Labels::new(),
                task: TaskSpec::default(),
                mode: ServiceMode::Replicated(1),
                update: Some(update),
                rollback: None,
                endpoint: None,
            }),
            previous: None,
            revision: 1,
            update: None,
            endpoint: None,
            reasons: reasons
                .iter()
                .map(|message| Reason {
                    decider: "scheduler".into(),
                    code: "c".into(),
                    message: (*message).into(),
                    count: 1,
                    since: Timestamp(0),
                })
                .collect(),
        }
    }

    fn look(judge: &mut Judge, service: &Service, tasks: &[Shown], secs: u64) -> &'static str {
        match judge.look(service, 1, tasks, Duration::from_secs(secs)).outcome {
            Outcome::Wait => "wait",
            Outcome::Converged => "converged",
            Outcome::Failed(_) => "failed",
        }
    }

    #[test]
    fn running_tasks_must_stay_for_the_monitor_time() {
        let (mut judge, service) = (Judge::new(Timestamp(0)), service(&[]));
        let running = [shown(1, 1, 1, TaskState::Running, "")];
        let starting = [shown(1, 1, 1, TaskState::Starting, "")];
        assert_eq!(look(&mut judge, &service, &running, 0), "wait");
        assert_eq!(look(&mut judge, &service, &running, 4), "wait");
        assert_eq!(look(&mut judge, &service, &starting, 5), "wait");
        assert_eq!(look(&mut judge, &service, &running, 6), "wait");
        assert_eq!(look(&mut judge, &service, &running, 11), "converged");
    }

    #[test]
    fn a_task_that_cannot_be_placed_ends_the_wait_with_the_reason() {
        let (mut judge, service) = (Judge::new(Timestamp(0)), service(&["no suitable node"]));
        let pending = [shown(1, 1, 1, TaskState::Pending, "")];
        assert_eq!(look(&mut judge, &service, &pending, 0), "wait");
        assert_eq!(look(&mut judge, &service, &pending, 19), "wait");
        let verdict = judge.look(&service, 1, &pending, Duration::from_secs(20));
        let Outcome::Failed(reason) = verdict.outcome else { panic!("still waits") };
        assert_eq!(reason, "no suitable node");
    }

    #[test]
    fn a_slot_that_keeps_failing_ends_the_wait_with_the_error() {
        let (mut judge, service) = (Judge::new(Timestamp(0)), service(&[]));
        let mut tasks: Vec<Shown> =
            (1..=2).map(|n| shown(n, 1, 1, TaskState::Failed, "task: non-zero exit (3)")).collect();
        assert_eq!(look(&mut judge, &service, &tasks, 1), "wait");
        tasks.push(shown(3, 1, 1, TaskState::Failed, "task: non-zero exit (3)"));
        let verdict = judge.look(&service, 1, &tasks, Duration::from_secs(2));
        let Outcome::Failed(reason) = verdict.outcome else { panic!("still waits") };
        assert_eq!(reason, "task web.1 keeps failing: task: non-zero exit (3)");
    }

    #[test]
    fn old_failures_do_not_count() {
        let mut judge = Judge::new(Timestamp(100_000));
        let tasks: Vec<Shown> = (1..=5).map(|n| shown(n, 1, 1, TaskState::Failed, "old")).collect();
        assert_eq!(look(&mut judge, &service(&[]), &tasks, 1), "wait");
        assert_eq!(look(&mut judge, &service(&[]), &tasks, 60), "wait");
    }
}
