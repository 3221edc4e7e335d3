//! Namespaces for containers, made ahead of time: that takes as long as all else together.
//!
//! Owns: the thread that makes them, the few that wait, and their links.
//! Does not know: who gets one, and what leads to it.
//! Invariant: one that waits is held by descriptors only, so that it ends with the daemon, and its
//! links with it; one that was made under other switches of the host than those of now, or for a
//! network that is gone, is not given out.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use netplan::{Hardware, LocalLink, Scope};
use ports::network::ContainerNetwork;
use types::NetworkId;

use crate::container::{Interface, UPLINK_MTU};
use crate::devices::rename_up;
use crate::namespace::{enter, in_new, own_namespace};
use crate::node::Node;
use crate::space::{Kind, Space};
use crate::sysctl::{self, Inherited};
use crate::{pair, resolver, route};

/// A namespace with its loopback up, a way to the resolver, and links to where its container will
/// be connected.
#[derive(Debug)]
pub(crate) struct Spare {
    pub(crate) namespace: OwnedFd,
    pub(crate) inside: Space,
    pub(crate) resolver_port: u16,
    pub(crate) links: Vec<Prepared>,
}

/// A pair of links that nobody uses yet.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    /// `None`: to the mesh.
    pub(crate) network: Option<NetworkId>,
    pub(crate) near: String,
    /// Of the container's end.
    pub(crate) name: String,
    pub(crate) mtu: u32,
}

/// The same, both ends up.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) planned: Planned,
    /// The number of the container's end.
    pub(crate) far: u32,
    /// Its address, which the kernel chose.
    pub(crate) hardware: Hardware,
}

#[derive(Debug)]
pub(crate) struct Spares {
    host: OwnedFd,
    resolver_port: u16,
    inherited: Inherited,
    /// How often that was another.
    age: u64,
    asked: SyncSender<Order>,
    delivered: Receiver<Delivery>,
    /// Those that wait or are asked for, the oldest first.
    all: Vec<Waiting>,
    /// Of the next order.
    number: u64,
    /// The networks of the container before.
    last: Vec<NetworkId>,
    /// Those of the one before it were the same.
    repeated: bool,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    age: u64,
    /// In the container's order; none: only the mesh.
    networks: Vec<NetworkId>,
    links: Vec<String>,
    spare: Option<Spare>,
}

#[derive(Debug)]
struct Order {
    number: u64,
    /// With the namespaces of our ends.
    links: Vec<(Planned, OwnedFd)>,
}

#[derive(Debug)]
struct Delivery {
    number: u64,
    spare: io::Result<Spare>,
}

impl Spares {
    /// Makes them in the likeness of `host`. Without a thread for it each is made when it is asked
    /// for.
    pub(crate) fn start(host: OwnedFd, resolver_port: u16) -> io::Result<Self> {
        let (made, delivered) = sync_channel(WAITING);
        let (asked, asks) = sync_channel::<Order>(WAITING);
        let place = host.try_clone()?;
        let serve = move || {
            let _ = enter(&place, || {
                // It ends with the one who asks.
                while let Ok(Order { number, links }) = asks.recv() {
                    let mut spare = Spare::make(resolver_port);
                    // Our ends' namespaces are held no longer: they must be able to end.
                    for (planned, place) in links {
                        if let Ok(spare) = &mut spare {
                            spare.connect(planned, &place);
                        }
                    }
                    if made.send(Delivery { number, spare }).is_err() {
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
        Ok(Self {
            host,
            resolver_port,
            inherited,
            age: 0,
            asked,
            delivered,
            all: Vec::new(),
            number: 0,
            last: Vec::new(),
            repeated: false,
        })
    }

    /// Takes notice of the host's switches.
    pub(crate) fn look(&mut self) -> io::Result<()> {
        let inherited = enter(&self.host, || Ok(sysctl::inherited()))?;
        self.age += u64::from(inherited != self.inherited);
        self.inherited = inherited;
        Ok(())
    }

    /// Takes in what was made, and drops what is not as it should be any more.
    fn receive(&mut self) {
        while let Ok(Delivery { number, spare }) = self.delivered.try_recv() {
            let Some(at) = self.all.iter().position(|one| one.number == number) else { continue };
            match spare {
                Ok(spare) => self.all[at].spare = Some(spare),
                Err(_) => drop(self.all.remove(at)),
            }
        }
        let age = self.age;
        self.all.retain(|one| one.spare.is_none() || one.age == age);
    }

    /// One that waits for a container on these networks, or for any, or else a new one, which has
    /// no links.
    fn take(&mut self, networks: &[NetworkId]) -> io::Result<Spare> {
        self.receive();
        let ready = |networks: &[NetworkId]| {
            self.all.iter().position(|one| one.spare.is_some() && one.networks == networks)
        };
        let at = ready(networks).or_else(|| ready(&[]));
        match at.and_then(|at| self.all.remove(at).spare) {
            Some(spare) => Ok(spare),
            None => self.make(),
        }
    }

    /// A new one without links.
    fn make(&self) -> io::Result<Spare> {
        enter(&self.host, || Spare::make(self.resolver_port))
    }

    /// Our ends of all that wait or are on their way.
    pub(crate) fn links(&self) -> impl Iterator<Item = &String> {
        self.all.iter().flat_map(|one| &one.links)
    }

    /// Keeps those only whose networks all are there.
    pub(crate) fn keep(&mut self, is_there: impl Fn(NetworkId) -> bool) {
        self.all.retain(|one| one.networks.iter().all(|network| is_there(*network)));
    }

    /// A container on these networks came. After two alike the next is expected to be so too.
    fn note(&mut self, networks: Vec<NetworkId>) {
        self.receive();
        self.repeated = networks == self.last;
        self.last = networks;
    }

    /// For which networks one more is to be made, if one is missing; one is always for any. What
    /// was made for others than those of late makes room.
    fn missing(&mut self) -> Option<Vec<NetworkId>> {
        let next = if self.repeated { self.last.clone() } else { Vec::new() };
        let others = self.all.iter().filter(|one| !one.networks.is_empty()).count();
        let is_new = !next.is_empty() && self.all.iter().all(|one| one.networks != next);
        if is_new && others + 1 >= WAITING {
            let is_ready = |one: &Waiting| !one.networks.is_empty() && one.spare.is_some();
            self.all.iter().position(is_ready).map(|at| self.all.remove(at));
        }
        if self.all.len() >= WAITING {
            return None;
        }
        let is_one_for_any = self.all.iter().any(|one| one.networks.is_empty());
        Some(if is_one_for_any { next } else { Vec::new() })
    }

    /// Has one more made; answers whether there is somebody who does it.
    fn ask(&mut self, networks: Vec<NetworkId>, links: Vec<(Planned, OwnedFd)>) -> bool {
        self.number += 1;
        let near = links.iter().map(|(planned, _)| planned.near.clone()).collect();
        let waiting =
            Waiting { number: self.number, age: self.age, networks, links: near, spare: None };
        // More than it has room for are on their way only after many were given up.
        let asked = self.asked.try_send(Order { number: self.number, links }).is_ok();
        if asked {
            self.all.push(waiting);
        }
        asked
    }
}

impl Node {
    /// Has as many namespaces made ahead of time as are missing, after a container on such
    /// networks. Not while a container waits: the kernel has one lock for the links of all
    /// namespaces.
    pub(crate) fn replace_spares(&mut self, networks: Vec<NetworkId>) {
        // What cannot be made is asked for again after the next container only.
        self.spares.note(networks);
        while let Some(networks) = self.spares.missing() {
            let links = self.plan_links(&networks);
            if !self.spares.ask(networks, links) {
                break;
            }
        }
    }

    /// As a container on these networks has them, the one to the mesh last.
    fn plan_links(&mut self, networks: &[NetworkId]) -> Vec<(Planned, OwnedFd)> {
        let mut links = Vec::new();
        let all = networks.iter().map(|network| Some(*network)).chain([None]);
        // Most containers are on one network, known or not.
        let first = usize::from(networks.is_empty());
        for (number, network) in (first..).zip(all) {
            let part = match network {
                Some(network) => self.planner.network(network),
                None => self.planner.ingress(),
            };
            let mtu = part.map_or(UPLINK_MTU, |part| part.mtu);
            let scope = network.map_or(Scope::Mesh, Scope::Overlay);
            if let Ok(place) = self.sandboxes.open_one(&Self::sandbox_name(scope)) {
                let (near, name) = (self.new_link(), format!("eth{number}"));
                links.push((Planned { network, near, name, mtu }, place));
            }
        }
        links
    }

    /// The networks of a container whose links can be made ahead of time, in its order.
    pub(crate) fn plannable(&self, wanted: &ContainerNetwork) -> Vec<NetworkId> {
        let all: Vec<NetworkId> = wanted.attachments.iter().map(|one| one.network).collect();
        let once: BTreeSet<&NetworkId> = all.iter().collect();
        let is_overlay = |network: &NetworkId| {
            let part = self.planner.network(*network).filter(|part| !part.ingress);
            part.is_some_and(|part| !part.driver.is_of_nodes())
        };
        let all_are = all.iter().all(is_overlay) && once.len() == all.len();
        if all_are && all.len() <= NETWORKS_MAX { all } else { Vec::new() }
    }

    /// A namespace for a container that has none and needs one of its own.
    pub(crate) fn new_namespace(&mut self, wanted: &ContainerNetwork) -> io::Result<Option<Spare>> {
        if first_network(wanted) == Some(NetworkId::HOST) || self.containers.is_mounted(&wanted.id)
        {
            return Ok(None);
        }
        let on_mesh = first_network(wanted) != Some(NetworkId::NONE) && self.is_on_mesh(wanted);
        let networks = self.plannable(wanted);
        let spare = if on_mesh { self.spares.take(&networks) } else { self.spares.make() };
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

    /// Gives a container the links that were made with its namespace; answers which of its own
    /// they are. What it has no use for goes.
    pub(crate) fn claim<'a>(
        &mut self,
        prepared: Vec<Prepared>,
        known: &[(&'a LocalLink, Interface)],
        alias: &str,
        inside: &mut Space,
    ) -> io::Result<Vec<&'a LocalLink>> {
        let mut claimed = Vec::new();
        for Prepared { planned, far, .. } in prepared {
            let Planned { network, near, .. } = &planned;
            let known = known.iter().find(|(end, _)| (&end.network, &end.link) == (network, near));
            let space = self.spaces.get_mut(&network.map_or(Scope::Mesh, Scope::Overlay));
            let (Some((end, interface)), Some(space)) = (known, space) else {
                inside.route.batch(vec![route::delete_link(far)], route::ABSENT)?;
                continue;
            };
            if interface.name != planned.name {
                inside.route.batch(rename_up(far, &interface.name).into(), route::ABSENT)?;
                inside.note_name(far, &interface.name);
            }
            if interface.mtu != planned.mtu {
                let sized = route::dress(0, alias, interface.mtu).text(libc::IFLA_IFNAME, near);
                space.route.batch(vec![sized], route::ABSENT)?;
                let sized = route::set_up(far).number(libc::IFLA_MTU, interface.mtu);
                inside.route.batch(vec![sized], route::ABSENT)?;
            }
            claimed.push(*end);
        }
        Ok(claimed)
    }
}

impl Spare {
    fn make(resolver_port: u16) -> io::Result<Self> {
        in_new(|| {
            sysctl::container();
            let mut inside = Space::open(Kind::Container)?;
            inside.route.request(route::set_up(LOOPBACK))?;
            resolver::lead_to(resolver_port)?;
            Ok(Self { resolver_port, namespace: own_namespace()?, inside, links: Vec::new() })
        })
    }

    fn connect(&mut self, planned: Planned, place: &OwnedFd) {
        match pair::prepare(place, &planned, &self.namespace, &mut self.inside) {
            Ok((far, hardware)) => self.links.push(Prepared { planned, far, hardware }),
            Err(error) => tracing::debug!(%error, "no link was prepared"),
        }
    }

    /// Its link to a network, or to the mesh.
    pub(crate) fn link(&self, network: Option<NetworkId>) -> Option<&Prepared> {
        self.links.iter().find(|one| one.planned.network == network)
    }
}

pub(crate) fn first_network(wanted: &ContainerNetwork) -> Option<NetworkId> {
    wanted.attachments.first().map(|attachment| attachment.network)
}

/// The first link of every namespace.
const LOOPBACK: u32 = 1;

const WAITING: usize = 4;

/// Of a container whose links are made ahead of time.
const NETWORKS_MAX: usize = 4;

const STACK_BYTES: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::route::RouteSocket;

    fn network(number: u128) -> NetworkId {
        NetworkId::from(base::Id::from_u128(number).unwrap())
    }

    fn new() -> OwnedFd {
        in_new(own_namespace).unwrap()
    }

    fn start(host: &OwnedFd) -> Spares {
        Spares::start(host.try_clone().unwrap(), 61_053).unwrap()
    }

    /// Asks for one with links to those namespaces, and awaits it.
    fn ask(spares: &mut Spares, networks: &[NetworkId], places: &[(Option<NetworkId>, &OwnedFd)]) {
        let number = spares.number + 1;
        let planned = |(at, (network, place)): (usize, &(Option<NetworkId>, &OwnedFd))| {
            let (near, name) = (format!("t{number}{at}"), format!("eth{at}"));
            let place = place.try_clone().unwrap();
            (Planned { network: *network, near, name, mtu: 1400 }, place)
        };
        let links = places.iter().enumerate().map(planned).collect();
        assert!(spares.ask(networks.to_vec(), links));
        eventually(|| {
            spares.receive();
            spares.all.iter().all(|one| one.spare.is_some())
        });
    }

    fn eventually(so: impl FnMut() -> bool) {
        let mut so = std::iter::repeat_with(so).take(1000);
        assert!(so.any(|so| {
            std::thread::sleep(Duration::from_millis(10 * u64::from(!so)));
            so
        }));
    }

    fn near(spare: &Spare, network: Option<NetworkId>) -> Option<&str> {
        spare.link(network).map(|link| link.planned.near.as_str())
    }

    fn has_link(place: &OwnedFd, name: &str) -> bool {
        let found = enter(place, || RouteSocket::open()?.index_of(name));
        found.unwrap().is_some()
    }

    #[test]
    fn what_waits_is_given_out_with_its_links() {
        let (host, mesh, sandbox) = (new(), new(), new());
        let mut spares = start(&host);
        ask(&mut spares, &[network(1)], &[(Some(network(1)), &sandbox), (None, &mesh)]);
        assert_eq!(spares.links().collect::<Vec<_>>(), ["t10", "t11"]);
        // Not to another network's, nor to one that is on none.
        assert_eq!(near(&spares.take(&[network(2)]).unwrap(), None), None);
        assert_eq!(near(&spares.take(&[]).unwrap(), None), None);
        let mut spare = spares.take(&[network(1)]).unwrap();
        let ours = (near(&spare, Some(network(1))), near(&spare, None));
        assert_eq!(ours, (Some("t10"), Some("t11")));
        assert_eq!(spares.links().count(), 0);
        let links = spare.inside.learn_links().unwrap();
        for (at, one) in spare.links.iter().enumerate() {
            let end = links.iter().find(|link| link.index == one.far).unwrap();
            assert_eq!((end.kind.as_str(), end.mtu, end.up), ("veth", 1400, true));
            assert_eq!((&end.name, end.hardware), (&format!("eth{at}"), one.hardware));
            // Locally administered, and nobody else's.
            assert_eq!(one.hardware[0] & 3, 2, "{:?}", one.hardware);
        }
        // Without one that waits, one is made.
        assert_eq!(near(&spares.take(&[network(1)]).unwrap(), None), None);
        drop(spare);
        eventually(|| !has_link(&mesh, "t11") && !has_link(&sandbox, "t10"));
    }

    #[test]
    fn what_was_made_under_other_switches_is_not_given_out() {
        let (host, mesh) = (new(), new());
        let mut spares = start(&host);
        ask(&mut spares, &[], &[(None, &mesh)]);
        let switch = "/proc/sys/net/ipv4/conf/default/arp_ignore";
        enter(&host, || std::fs::write(switch, "1")).unwrap();
        spares.look().unwrap();
        assert_eq!(near(&spares.take(&[]).unwrap(), None), None);
        assert_eq!(spares.links().count(), 0);
    }

    #[test]
    fn what_was_made_for_a_network_that_is_gone_is_not_given_out() {
        let (host, mesh, sandbox) = (new(), new(), new());
        let mut spares = start(&host);
        ask(&mut spares, &[network(1)], &[(Some(network(1)), &sandbox)]);
        ask(&mut spares, &[], &[(None, &mesh)]);
        spares.keep(|one| one != network(1));
        assert_eq!(spares.links().collect::<Vec<_>>(), ["t20"]);
        assert_eq!(near(&spares.take(&[network(1)]).unwrap(), None), Some("t20"));
    }

    #[test]
    fn two_alike_in_a_row_are_followed_by_a_third() {
        let host = new();
        let mut spares = start(&host);
        let mut after = |networks: &[u128]| {
            spares.note(networks.iter().map(|number| network(*number)).collect());
            while let Some(networks) = spares.missing() {
                ask(&mut spares, &networks, &[]);
            }
            let all = spares.all.iter().map(|one| one.networks.clone()).collect::<Vec<_>>();
            let _ = spares.take(&networks.iter().map(|n| network(*n)).collect::<Vec<_>>());
            all
        };
        let (any, one, two) = (Vec::new(), vec![network(1)], vec![network(2)]);
        assert_eq!(after(&[1]), [&any, &any, &any, &any].map(Vec::clone));
        assert_eq!(after(&[1]), [&any, &any, &any, &one].map(Vec::clone));
        // That one was taken, and what is for any is left alone.
        assert_eq!(after(&[1]), [&any, &any, &any, &one].map(Vec::clone));
        assert_eq!(after(&[2]), [&any, &any, &any, &any].map(Vec::clone));
        assert_eq!(after(&[2]), [&any, &any, &any, &two].map(Vec::clone));
    }

    #[test]
    fn others_make_room_and_one_is_always_for_any() {
        let host = new();
        let mut spares = start(&host);
        for _ in 0..WAITING - 1 {
            ask(&mut spares, &[network(1)], &[]);
        }
        spares.note(vec![network(2)]);
        assert_eq!(spares.missing(), Some(Vec::new()));
        ask(&mut spares, &[], &[]);
        assert_eq!(spares.missing(), None);
        spares.note(vec![network(2)]);
        assert_eq!(spares.missing(), Some(vec![network(2)]));
        ask(&mut spares, &[network(2)], &[]);
        assert_eq!(spares.missing(), None);
        let count = |networks: &[NetworkId]| {
            spares.all.iter().filter(|one| one.networks == networks).count()
        };
        assert_eq!((count(&[]), count(&[network(1)]), count(&[network(2)])), (1, 2, 1));
    }
}
