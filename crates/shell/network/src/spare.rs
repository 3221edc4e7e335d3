//! Namespaces for containers, made ahead of time: that takes as long as all else together.
//!
//! Owns: the thread that makes them, and the few that wait.
//! Does not know: who gets one, and what it is connected to besides the mesh.
//! Invariant: one that waits is held by descriptors only, so that it ends with the daemon, and its
//! link with it; one that was made under other switches of the host than those of now is not given
//! out.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use netplan::Scope;
use ports::network::ContainerNetwork;
use types::NetworkId;

use crate::container::UPLINK_MTU;
use crate::namespace::{enter, in_new, own_namespace};
use crate::node::Node;
use crate::space::{Kind, Space};
use crate::sysctl::{self, Inherited};
use crate::{pair, resolver, route};

/// A namespace with its loopback up, a way to the resolver, and perhaps a link to the mesh.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) namespace: OwnedFd,
    pub(crate) inside: Space,
    pub(crate) resolver_port: u16,
    pub(crate) mesh: Option<Prepared>,
}

/// A pair of links that nobody uses yet: its end in the mesh, and the number of the other one.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) near: String,
    pub(crate) far: u32,
}

#[derive(Debug)]
pub(crate) struct Spares {
    host: OwnedFd,
    resolver_port: u16,
    inherited: Inherited,
    /// How often that was another.
    age: u64,
    asked: SyncSender<Order>,
    ready: Receiver<Delivery>,
    /// Of all that wait or are asked for: the ends in the mesh.
    links: BTreeSet<String>,
}

#[derive(Debug)]
struct Order {
    age: u64,
    near: String,
    mtu: u32,
    mesh: Option<OwnedFd>,
}

#[derive(Debug)]
struct Delivery {
    age: u64,
    near: String,
    spare: io::Result<Spare>,
}

impl Spares {
    /// Makes them in the likeness of `host`. Without a thread for it each is made when it is asked
    /// for.
    pub(crate) fn start(host: OwnedFd, resolver_port: u16) -> io::Result<Self> {
        // There are no more than those at a time.
        let (made, ready) = sync_channel(WAITING);
        let (asked, asks) = sync_channel::<Order>(WAITING);
        let place = host.try_clone()?;
        let serve = move || {
            let _ = enter(&place, || {
                // It ends with the one who asks.
                while let Ok(Order { age, near, mtu, mesh }) = asks.recv() {
                    let mut spare = Spare::make(resolver_port);
                    // Held no longer: it must be able to end.
                    if let (Ok(spare), Some(mesh)) = (&mut spare, mesh) {
                        spare.connect(&mesh, &near, mtu);
                    }
                    if made.send(Delivery { age, near, spare }).is_err() {
                        break;
                    }
                }
                Ok(())
            });
        };
        let thread = std::thread::Builder::new().name("netns".into()).stack_size(STACK_BYTES);
        if let Err(error) = thread.spawn(serve) {
            tracing::warn!(%error, "no namespaces are made ahead of time");
        }
        let inherited = enter(&host, || Ok(sysctl::inherited()))?;
        let links = BTreeSet::new();
        Ok(Self { host, resolver_port, inherited, age: 0, asked, ready, links })
    }

    /// Takes notice of the host's switches.
    pub(crate) fn look(&mut self) -> io::Result<()> {
        let inherited = enter(&self.host, || Ok(sysctl::inherited()))?;
        self.age += u64::from(inherited != self.inherited);
        self.inherited = inherited;
        Ok(())
    }

    /// One that waits, or else a new one, which has no link.
    fn take(&mut self) -> io::Result<Spare> {
        while let Ok(Delivery { age, near, spare }) = self.ready.try_recv() {
            self.links.remove(&near);
            if let Some(spare) = spare.ok().filter(|_| age == self.age) {
                return Ok(spare);
            }
        }
        self.make()
    }

    /// A new one without a link.
    fn make(&self) -> io::Result<Spare> {
        enter(&self.host, || Spare::make(self.resolver_port))
    }

    /// The ends in the mesh of all that wait or are on their way.
    pub(crate) fn links(&self) -> impl Iterator<Item = &String> {
        self.links.iter()
    }

    fn is_one_missing(&self) -> bool {
        self.links.len() < WAITING
    }

    /// Has one more made, with a link to `mesh` whose end there is `near`.
    fn ask(&mut self, near: String, mtu: u32, mesh: Option<OwnedFd>) {
        self.links.insert(near.clone());
        // Without a thread nothing comes.
        let _ = self.asked.send(Order { age: self.age, near, mtu, mesh });
    }
}

impl Node {
    /// Has as many namespaces made ahead of time as are missing. Not while a container waits: the
    /// kernel has one lock for the links of all namespaces.
    pub(crate) fn replace_spares(&mut self) {
        while self.spares.is_one_missing() {
            let near = self.new_link();
            let mesh = self.sandboxes.open_one(&Self::sandbox_name(Scope::Mesh));
            let mtu = self.planner.ingress().map_or(UPLINK_MTU, |part| part.mtu);
            self.spares.ask(near, mtu, mesh.ok());
        }
    }

    /// A namespace for a container that has none and needs one of its own.
    pub(crate) fn new_namespace(&mut self, wanted: &ContainerNetwork) -> io::Result<Option<Spare>> {
        if first_network(wanted) == Some(NetworkId::HOST) || self.containers.is_mounted(&wanted.id)
        {
            return Ok(None);
        }
        let on_mesh = first_network(wanted) != Some(NetworkId::NONE) && self.is_on_mesh(wanted);
        let spare = if on_mesh { self.spares.take() } else { self.spares.make() };
        spare.map(Some)
    }

    /// The namespace of a container; on the network of the host it is the host's.
    pub(crate) fn ensure_namespace(
        &mut self,
        wanted: &ContainerNetwork,
        made: Option<&Spare>,
    ) -> io::Result<()> {
        let id = &wanted.id;
        if let Some(made) = made {
            self.containers.adopt(id, &made.namespace)?;
            self.resolvers.note(id, made.resolver_port);
        } else if !self.containers.is_mounted(id) {
            self.containers.adopt(id, &self.namespace)?;
        }
        Ok(())
    }
}

impl Spare {
    fn make(resolver_port: u16) -> io::Result<Self> {
        in_new(|| {
            sysctl::container();
            let mut inside = Space::open(Kind::Container)?;
            inside.route.request(route::set_up(LOOPBACK))?;
            resolver::lead_to(resolver_port)?;
            Ok(Self { resolver_port, namespace: own_namespace()?, inside, mesh: None })
        })
    }

    fn connect(&mut self, mesh: &OwnedFd, near: &str, mtu: u32) {
        match pair::prepare(mesh, near, mtu, &self.namespace, &mut self.inside) {
            Ok(far) => self.mesh = Some(Prepared { near: near.to_owned(), far }),
            Err(error) => tracing::debug!(%error, "no link was prepared"),
        }
    }

    pub(crate) fn near(&self) -> Option<&str> {
        self.mesh.as_ref().map(|mesh| mesh.near.as_str())
    }
}

pub(crate) fn first_network(wanted: &ContainerNetwork) -> Option<NetworkId> {
    wanted.attachments.first().map(|attachment| attachment.network)
}

/// The first link of every namespace.
const LOOPBACK: u32 = 1;

const WAITING: usize = 4;

const STACK_BYTES: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::route::RouteSocket;

    /// A host, a mesh, and what was asked for when it is ready.
    fn waiting() -> (OwnedFd, OwnedFd, Spares) {
        let new = || in_new(own_namespace).unwrap();
        let (host, mesh) = (new(), new());
        let mut spares = Spares::start(host.try_clone().unwrap(), 61_053).unwrap();
        spares.ask("t1".into(), 1400, Some(mesh.try_clone().unwrap()));
        for _ in 0..100 {
            if has_link(&mesh) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // The link is made last, but for being handed over.
        std::thread::sleep(Duration::from_millis(100));
        (host, mesh, spares)
    }

    fn has_link(mesh: &OwnedFd) -> bool {
        let found = enter(mesh, || RouteSocket::open()?.index_of("t1"));
        found.unwrap().is_some()
    }

    #[test]
    fn what_waits_is_given_out_with_its_link() {
        let (_host, mesh, mut spares) = waiting();
        assert_eq!(spares.links().collect::<Vec<_>>(), ["t1"]);
        let mut spare = spares.take().unwrap();
        assert_eq!((spare.near(), spares.links().count()), (Some("t1"), 0));
        let far = spare.mesh.as_ref().unwrap().far;
        let links = spare.inside.learn_links().unwrap();
        let end = links.iter().find(|link| link.index == far).unwrap();
        assert_eq!((end.kind.as_str(), end.mtu, end.up), ("veth", 1400, false));
        // Without one that waits, one is made.
        assert_eq!(spares.take().unwrap().near(), None);
        drop(spare);
        for _ in 0..500 {
            if !has_link(&mesh) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("a link outlives the namespace of its other end");
    }

    #[test]
    fn what_was_made_under_other_switches_is_not_given_out() {
        let (host, _mesh, mut spares) = waiting();
        let switch = "/proc/sys/net/ipv4/conf/default/arp_ignore";
        enter(&host, || std::fs::write(switch, "1")).unwrap();
        spares.look().unwrap();
        assert_eq!(spares.take().unwrap().near(), None);
        assert!(spares.is_one_missing());
    }
}
