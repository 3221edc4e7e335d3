//! A task runs, and how long it takes until every node reaches it: by its service's virtual
//! address, by name, and by the mesh.
//!
//! Owns: five hosts with daemons as users have them, and who asks on each.
//! Does not know: how nodes are told.
//! Invariant: the clock begins when the task's own node says that it runs; all hosts of the rig
//! have the same clock.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use hyper_util::rt::TokioIo;
use integration::{Host, IMAGE, LONG, Lab, ask_tcp, in_namespace, joined, wait_until};
use tonic::transport::Endpoint;
use wire::v1::control_client::ControlClient;
use wire::v1::{ListTasksRequest, TaskState};

use crate::dns::question;
use crate::figure::Figure;

/// Ways to a service, in the order of the figures.
const WAYS: [&str; 3] = ["name", "virtual address", "mesh"];

/// `trials` services of one task, each reached from five nodes.
///
/// # Errors
/// When a cluster cannot be made, or a service is not reached within half a minute.
pub fn measure(trials: usize) -> Result<Vec<Figure>> {
    let lab = joined(3, 2)?;
    let manager = lab.host(1);
    manager.shoal(&["network", "create", "-d", "overlay", "back"])?.ok()?;
    let probe = ["service", "create", "-d", "--name", "probe", "--mode", "global"];
    manager.shoal(&[&probe[..], &["--network", "back", IMAGE]].concat())?.ok()?;
    let probes = manager.wait_for_running("probe", lab.hosts().len(), LONG)?;
    let asking: Vec<Asking<'_>> = lab
        .hosts()
        .iter()
        .map(|host| {
            let task = probes.iter().find(|task| task.node == host.name());
            let task = task.with_context(|| format!("no task on {}", host.name()))?;
            Ok(Asking { inside: host.task_netns(&task.id), mesh: host.port_v4(0), host })
        })
        .collect::<Result<_>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut lags: [Vec<f64>; 3] = Default::default();
    for trial in 0..trials {
        for (way, lag) in one_trial(&lab, &asking, &runtime, trial)? {
            lags[way].push(lag);
        }
    }
    let mut figures = Vec::new();
    for (way, lags) in WAYS.iter().zip(&mut lags) {
        lags.sort_by(f64::total_cmp);
        for (which, part) in [("p50", 0.5), ("p99", 0.99)] {
            let ours = lags[((lags.len() - 1) as f64 * part).round() as usize];
            let name = format!("task running to reached by {way} on each of 5 nodes, {which}");
            figures.push(Figure { name, unit: "ms", ours, peer: None, rounds: trials });
        }
    }
    Ok(figures)
}

/// Who asks on one host.
struct Asking<'a> {
    host: &'a Host,
    /// Namespace of a container on the network.
    inside: PathBuf,
    mesh: SocketAddr,
}

/// Milliseconds of each way and node.
fn one_trial(
    lab: &Lab,
    asking: &[Asking<'_>],
    runtime: &tokio::runtime::Runtime,
    trial: usize,
) -> Result<Vec<(usize, f64)>> {
    let manager = lab.host(1);
    let name = format!("reached{trial}");
    let published = FIRST_PORT + trial as u16;
    let port = format!("{published}:{PORT}");
    // It is known everywhere before it has a task.
    let create = ["service", "create", "-d", "--name", &name, "--network", "back", "-p", &port];
    manager.shoal(&[&create[..], &["--replicas", "0", IMAGE]].concat())?.ok()?;
    let mut virtual_address = None;
    wait_until("the name on every node", LONG, || {
        for one in asking {
            let asked = name.clone();
            match in_namespace(&one.inside, move || look_up(&asked))? {
                Some(address) => virtual_address = Some(address),
                None => return Ok(false),
            }
        }
        Ok(true)
    })?;
    let to = SocketAddr::new(virtual_address.context("no virtual address")?.into(), PORT);
    let mut threads = Vec::new();
    for one in asking {
        let tasks = format!("tasks.{name}");
        threads.push(first(0, one.inside.clone(), move || Ok(look_up(&tasks)?.is_some())));
        threads.push(first(1, one.inside.clone(), move || Ok(ask_tcp(to).is_ok())));
        let mesh = SocketAddr::new(one.mesh.ip(), published);
        threads.push(first(2, one.host.netns(), move || Ok(ask_tcp(mesh).is_ok())));
    }
    manager.shoal(&["service", "scale", "-d", &format!("{name}=1")])?.ok()?;
    let mut seen = Vec::new();
    for thread in threads {
        seen.push(thread.join().map_err(|_| anyhow!("a thread that asked panicked"))??);
    }
    let running = runtime.block_on(running_since(manager, &name))?;
    manager.shoal(&["service", "rm", &name])?.ok()?;
    let lag = |(way, at): (usize, f64)| (way, (at - running).max(0.0));
    Ok(seen.into_iter().map(lag).collect())
}

/// When, in milliseconds since 1970, something holds for the first time.
fn first(
    way: usize,
    namespace: PathBuf,
    holds: impl Fn() -> Result<bool> + Send + 'static,
) -> JoinHandle<Result<(usize, f64)>> {
    thread::spawn(move || {
        in_namespace(&namespace, move || {
            let begun = Instant::now();
            while !holds()? {
                ensure!(begun.elapsed() < PATIENCE, "not reached by {}", WAYS[way]);
                thread::sleep(PERIOD);
            }
            Ok((way, SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() * 1e3))
        })
    })
}

/// The first address of a name, as a container's resolver gives it.
fn look_up(name: &str) -> Result<Option<Ipv4Addr>> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((RESOLVER, 53))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(&question(name))?;
    let mut answer = [0; 512];
    let length = socket.recv(&mut answer).context("no answer of the resolver")?;
    // The one answer that is looked at is the last of the message, and its address the last of it.
    let count = u16::from_be_bytes([answer[6], answer[7]]);
    match answer[..length].last_chunk::<4>() {
        Some(address) if count > 0 => Ok(Some(Ipv4Addr::from(*address))),
        Some(_) => Ok(None),
        None => bail!("an answer of {length} bytes"),
    }
}

/// When the task of a service began to run, as its node says.
async fn running_since(manager: &Host, service: &str) -> Result<f64> {
    let socket = manager.socket();
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { tokio::net::UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let channel = Endpoint::from_static("http://shoal").connect_with_connector(connector).await?;
    let request = ListTasksRequest { services: vec![service.into()], ..Default::default() };
    let begun = Instant::now();
    let mut client = ControlClient::new(channel);
    while begun.elapsed() < PATIENCE {
        let tasks = client.list_tasks(request.clone()).await?.into_inner().tasks;
        let mut states = tasks.iter().filter_map(|view| view.task.as_ref()?.status.as_ref());
        let running = i32::from(TaskState::Running);
        if let Some(status) = states.find(|status| status.state == running) {
            return Ok(status.at as f64);
        }
        tokio::time::sleep(PERIOD).await;
    }
    bail!("no task of {service} runs")
}

const RESOLVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));
const PORT: u16 = 80;
const FIRST_PORT: u16 = 20_000;
const PATIENCE: Duration = Duration::from_secs(30);
/// Those who ask share the processors with those who answer.
const PERIOD: Duration = Duration::from_millis(5);
