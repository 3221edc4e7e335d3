//! Network of one node's tasks: the real implementation of the network port.
//!
//! Owns: a namespace a task, one link pair each, a node-local address, the way out.
//! Does not know: clusters, services, who runs in a namespace.
//! Invariant: what exists is the record: addresses in use are those that routes of our links
//! name, and every link, table and mount carries this daemon's instance id, so that two daemons
//! in one network namespace do not touch each other's.
//!
//! Routed, without a bridge: the task has an address of its own with prefix 32 and a gateway that
//! is nobody's address; a permanent neighbour entry leads to the host's end of the pair. The host
//! has one route a task and forwards; a masquerading rule gives what leaves the node its address.

#![allow(unsafe_code)]

mod filter;
mod namespace;
mod netlink;
mod route;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base::chain;
use ipnet::Ipv4Net;
use ports::network::{Attached, ContainerNetwork, Drain, Network};
use ports::runtime::RuntimeError;
use types::DirectoryUpdate;

use crate::namespace::{Namespaces, Opened};
use crate::route::{Route, RouteSocket, TASK_LINK};

/// What the network needs to be told.
#[derive(Clone, Debug)]
pub struct NetworkOptions {
    /// The daemon's run directory; `netns` below it is ours.
    pub run_dir: PathBuf,
    /// Names this daemon among those of one machine: letters, digits and `-`, at most 32.
    pub instance_id: String,
    /// Where task addresses come from; `None`: the first free one of [`CANDIDATES`].
    pub subnet: Option<Ipv4Net>,
}

/// Networks of this node's tasks. Clones share everything.
#[derive(Clone, Debug)]
pub struct TaskNetwork {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    instance: String,
    names: Names,
    subnet: Ipv4Net,
    namespaces: Namespaces,
    /// One change at a time, as the kernel has one lock for all of it; waited for here, where
    /// waiting costs no thread.
    gate: tokio::sync::Mutex<()>,
    socket: Mutex<RouteSocket>,
    /// Tasks to be detached: whoever comes through the gate removes the links of all of them at
    /// once, since the kernel takes as long for many as for one.
    leaving: Mutex<BTreeSet<String>>,
}

/// Names that carry the instance.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Names {
    /// Of all links; six bytes.
    link_prefix: String,
    alias_prefix: String,
    table: String,
    /// Links on their way out, to be removed in one step.
    group: u32,
}

impl TaskNetwork {
    /// Prepares the node in the network namespace of the calling process: forwarding, the
    /// outgoing rule, the directory. Tasks of an earlier daemon keep what they have.
    pub async fn open(options: NetworkOptions) -> Result<Self, RuntimeError> {
        let inner = blocking("prepare the network", move || Inner::open(options)).await?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The node-local subnet of task addresses.
    #[must_use]
    pub fn subnet(&self) -> Ipv4Net {
        self.inner.subnet
    }

    /// Removes every trace of this instance: all tasks' networks, the rule, the mount.
    pub async fn remove_all(&self) -> Result<(), RuntimeError> {
        let inner = Arc::clone(&self.inner);
        let _gate = self.inner.gate.lock().await;
        blocking("remove the network", move || inner.remove_all()).await
    }
}

impl Network for TaskNetwork {
    async fn update(&self, _update: DirectoryUpdate) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn attach(&self, wanted: &ContainerNetwork) -> Result<Attached, RuntimeError> {
        check_id(&wanted.id)?;
        let (inner, id) = (Arc::clone(&self.inner), wanted.id.clone());
        let _gate = self.inner.gate.lock().await;
        // A detach that failed or was given up no longer counts.
        self.inner.leaving().remove(&id);
        let attach = move || inner.attach(&id);
        let netns = blocking("attach the task to the network", attach).await?;
        Ok(Attached { netns, ..Attached::default() })
    }

    async fn drain(&self, _id: &str, _limit: Drain) {}

    async fn detach(&self, id: &str) -> Result<(), RuntimeError> {
        check_id(id)?;
        self.inner.leaving().insert(id.to_owned());
        let _gate = self.inner.gate.lock().await;
        if !self.inner.leaving().contains(id) {
            // Somebody before us has done it.
            return Ok(());
        }
        let inner = Arc::clone(&self.inner);
        blocking("detach the task from the network", move || inner.detach_leaving()).await
    }

    async fn observe(&self) -> Result<Vec<String>, RuntimeError> {
        let inner = Arc::clone(&self.inner);
        let _gate = self.inner.gate.lock().await;
        blocking("observe the network", move || inner.observe()).await
    }
}

impl Inner {
    fn open(options: NetworkOptions) -> io::Result<Self> {
        let names = names(&options.instance_id)?;
        let namespaces = Namespaces::open(options.run_dir.join("netns"))?;
        let mut socket = RouteSocket::open()?;
        let own = own_addresses(&mut socket, &names)?;
        let subnet = match options.subnet {
            Some(subnet) => subnet,
            None => choose_subnet(&own, &socket.routes()?)
                .ok_or_else(|| io::Error::other("every candidate subnet is in use; name one"))?,
        };
        let inner = Self {
            instance: options.instance_id,
            names,
            subnet,
            namespaces,
            gate: tokio::sync::Mutex::new(()),
            socket: Mutex::new(socket),
            leaving: Mutex::default(),
        };
        inner.repair()?;
        Ok(inner)
    }

    /// What all tasks share; somebody else may have changed it.
    fn repair(&self) -> io::Result<()> {
        // Of the namespace that this process is in.
        let forwarding = "/proc/sys/net/ipv4/ip_forward";
        if std::fs::read_to_string(forwarding)?.trim() != "1" {
            std::fs::write(forwarding, "1")?;
        }
        if !filter::exists(&self.names.table)? {
            filter::install(&self.names.table, self.subnet, &self.names.link_prefix)?;
        }
        Ok(())
    }

    fn attach(&self, id: &str) -> io::Result<PathBuf> {
        let mut socket = self.socket();
        self.repair()?;
        let alias = self.alias(id);
        let link = socket.links()?.into_iter().find(|link| link.alias == alias);
        let mounted = self.namespaces.is_mounted(id);
        if let (true, Some(link)) = (mounted, &link)
            && socket.routes()?.iter().any(|route| route.link == link.index)
        {
            return Ok(self.namespaces.path(id));
        }
        // Half of an earlier attempt: begin again, but keep a namespace that may be in use.
        if let Some(link) = link {
            socket.delete_link(link.index)?;
        }
        let opened = match mounted {
            true => self.namespaces.enter(id)?,
            false => self.namespaces.make(id)?,
        };
        self.connect(&mut socket, id, opened)?;
        Ok(self.namespaces.path(id))
    }

    /// Joins the task's namespace and ours. The host's route comes last: it is the record that
    /// the address is taken and that all is done.
    fn connect(&self, socket: &mut RouteSocket, id: &str, mut task: Opened) -> io::Result<()> {
        let routes = socket.routes()?;
        let address = free_address(self.subnet, &routes)
            .ok_or_else(|| io::Error::other(format!("no address is left in {}", self.subnet)))?;
        let name = link_name(&self.names.link_prefix, id);
        socket.add_pair(&name, HOST_HARDWARE, &task.fd)?;
        let host = socket.links()?.into_iter().find(|link| link.name == name);
        let host = host.ok_or_else(|| io::Error::other(format!("{name} vanished")))?;
        let inside = task.socket.links()?.into_iter().find(|link| link.name == TASK_LINK);
        let inside = inside.ok_or_else(|| io::Error::other(format!("{TASK_LINK} vanished")))?;
        socket.dress(host.index, &self.alias(id))?;
        task.socket.add_address(inside.index, address)?;
        task.socket.set_up(inside.index)?;
        task.socket.add_neighbour(inside.index, GATEWAY, HOST_HARDWARE)?;
        task.socket.add_host_route(inside.index, GATEWAY)?;
        task.socket.add_default_route(inside.index, GATEWAY)?;
        socket.add_host_route(host.index, address)
    }

    /// Detaches all that are leaving. When that fails they stay in the list, and whoever waits
    /// for one of them tries again and gets the error.
    fn detach_leaving(&self) -> io::Result<()> {
        let leaving = self.leaving().clone();
        self.remove_links(|alias| leaving.iter().any(|id| self.alias(id) == *alias))?;
        for id in leaving {
            self.namespaces.remove(&id)?;
            self.leaving().remove(&id);
        }
        Ok(())
    }

    /// Removes those of our links whose alias is chosen, also when some process still holds the
    /// namespace at the other end.
    fn remove_links(&self, chosen: impl Fn(&str) -> bool) -> io::Result<()> {
        let mut socket = self.socket();
        let links: Vec<u32> = socket
            .links()?
            .into_iter()
            .filter(|link| link.alias.starts_with(&self.names.alias_prefix) && chosen(&link.alias))
            .map(|link| link.index)
            .collect();
        match links.as_slice() {
            [] => Ok(()),
            [link] => socket.delete_link(*link),
            links => socket.delete_links(links, self.names.group),
        }
    }

    /// The tasks; on the way what is shared is repaired, and links without a namespace, left by a
    /// crash, are removed.
    fn observe(&self) -> io::Result<Vec<String>> {
        self.repair()?;
        let tasks = self.namespaces.list()?;
        let known: BTreeSet<String> = tasks.iter().map(|id| self.alias(id)).collect();
        self.remove_links(|alias| !known.contains(alias))?;
        Ok(tasks)
    }

    fn remove_all(&self) -> io::Result<()> {
        self.leaving().extend(self.namespaces.list()?);
        self.detach_leaving()?;
        self.remove_links(|_| true)?;
        filter::remove(&self.names.table)?;
        self.namespaces.close()
    }

    fn alias(&self, id: &str) -> String {
        format!("shoal/{}/{id}", self.instance)
    }

    fn leaving(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn socket(&self) -> MutexGuard<'_, RouteSocket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Addresses of tasks that an earlier daemon attached.
fn own_addresses(socket: &mut RouteSocket, names: &Names) -> io::Result<Vec<Ipv4Addr>> {
    let links: BTreeMap<u32, String> =
        socket.links()?.into_iter().map(|link| (link.index, link.alias)).collect();
    let ours = |route: &Route| {
        let alias = links.get(&route.link);
        alias.is_some_and(|alias| alias.starts_with(&names.alias_prefix))
    };
    let routes = socket.routes()?;
    Ok(routes.iter().filter(|route| ours(route)).map(|route| route.destination.addr()).collect())
}

/// The candidate that is in use by us already, else the first that overlaps with no route.
fn choose_subnet(own: &[Ipv4Addr], routes: &[Route]) -> Option<Ipv4Net> {
    let candidates = CANDIDATES.iter().filter_map(|text| text.parse::<Ipv4Net>().ok());
    let candidates: Vec<Ipv4Net> = candidates.collect();
    if let Some(used) = candidates.iter().find(|net| own.iter().any(|a| net.contains(a))) {
        return Some(*used);
    }
    let overlaps = |net: &Ipv4Net| {
        routes
            .iter()
            .map(|route| route.destination)
            .any(|other| other.prefix_len() > 0 && (other.contains(net) || net.contains(&other)))
    };
    candidates.into_iter().find(|net| !overlaps(net))
}

/// The lowest address without a route; the first and the last of the subnet are never given.
fn free_address(subnet: Ipv4Net, routes: &[Route]) -> Option<Ipv4Addr> {
    let taken: BTreeSet<Ipv4Addr> = routes
        .iter()
        .filter(|route| route.destination.prefix_len() == 32)
        .map(|route| route.destination.addr())
        .collect();
    subnet.hosts().find(|address| !taken.contains(address))
}

fn names(instance: &str) -> io::Result<Names> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    if instance.is_empty() || instance.len() > 32 || !instance.bytes().all(allowed) {
        return Err(io::Error::other(format!(
            "instance id {instance:?} must be 1 to 32 letters, digits and hyphens"
        )));
    }
    Ok(Names {
        link_prefix: format!("s{}-", short_hash(instance, 4)),
        alias_prefix: format!("shoal/{instance}/"),
        table: format!("shoal-{instance}"),
        // Group 0 is everybody's.
        group: fnv(instance) as u32 | 1 << 31,
    })
}

/// 15 bytes, the most a link's name may have.
fn link_name(prefix: &str, id: &str) -> String {
    format!("{prefix}{}", short_hash(id, 9))
}

/// In base 36. Equal names of two tasks are refused by the kernel, not mixed up.
fn short_hash(text: &str, length: usize) -> String {
    let mut hash = fnv(text);
    let mut out = Vec::with_capacity(length);
    for _ in 0..length {
        out.push(b"0123456789abcdefghijklmnopqrstuvwxyz"[(hash % 36) as usize]);
        hash /= 36;
    }
    out.into_iter().map(char::from).collect()
}

/// FNV-1a.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

fn check_id(id: &str) -> Result<(), RuntimeError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if id.is_empty() || id.len() > 64 || !id.bytes().all(allowed) {
        let problem = format!("{id:?} must be 1 to 64 letters, digits, - and _");
        return Err(RuntimeError::Invalid { field: "id", problem });
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    step: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, RuntimeError> {
    let failed =
        |error: &dyn std::fmt::Display| RuntimeError::Failed { step, problem: error.to_string() };
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(|error| failed(&chain(&error))),
        Err(error) => Err(failed(&error)),
    }
}

/// Where node-local task addresses are taken from when nothing is configured: ranges that
/// neither docker nor common routers begin with. 4,094 tasks a node.
pub const CANDIDATES: &[&str] = &[
    "172.30.240.0/20",
    "172.29.240.0/20",
    "172.28.240.0/20",
    "172.27.240.0/20",
    "172.26.240.0/20",
    "172.25.240.0/20",
    "10.213.240.0/20",
    "10.214.240.0/20",
    "192.168.240.0/20",
    "198.18.240.0/20",
];

/// Nobody's address, the same for every task.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// Of the host's end of every pair: locally administered, and never seen beyond its one link.
const HOST_HARDWARE: [u8; 6] = [0x02, 0x53, 0x68, 0x6f, 0x61, 0x6c];

#[cfg(test)]
mod tests;
