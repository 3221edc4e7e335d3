//! One network namespace under our control.
//!
//! Owns: sockets inside it, its tables, and how changes are carried out and found missing.
//! Does not know: what the namespace is for.
//! Invariant: whatever happened to the namespace, a repair leaves it as wanted or answers an error.

use std::collections::BTreeMap;
use std::io;

use netplan::{Changes, Edit, Elements, LinkName, RouteKey, Surplus, Value, Wanted, link};

use crate::hops::Hops;
use crate::netlink::{Message, Socket};
use crate::nft::INET;
use crate::nft::table::{Found, NftSocket, Table, UNKNOWN};
use crate::route::{self, ABSENT, PROTOCOL, RouteSocket, RouteTo, V4, V6};

/// Sockets in one namespace. They stay there, whichever thread uses them.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) route: RouteSocket,
    kind: Kind,
    links: BTreeMap<String, u32>,
    /// A link of the changes that are carried out is not there; the list is a fresh one.
    missed: bool,
    filter: Option<Filter>,
    /// Something failed half-way, or is not as it was left.
    doubtful: bool,
}

/// How much of a namespace is ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All of it.
    Own,
    /// One link and one table.
    Host { link: String },
    /// A container's: addresses come without the route of their prefix.
    Container,
}

impl Kind {
    /// In a namespace of our own nobody but the kernel makes routes.
    fn is_ours(&self, protocol: u8) -> bool {
        match self {
            Self::Own => protocol != libc::RTPROT_KERNEL,
            Self::Host { .. } | Self::Container => protocol == PROTOCOL,
        }
    }
}

/// What is watched and filtered.
#[derive(Debug)]
pub(crate) struct Filter {
    socket: NftSocket,
    changes: Socket,
    tables: Vec<Installed>,
    /// What the tables are made of.
    reason: String,
    /// Of the last look; nobody has changed a rule or element while it stays.
    generation: u32,
    /// At that generation everything was as wanted.
    certain: bool,
}

/// Tables that were made.
#[derive(Clone, Copy, Debug, Default)]
struct Made {
    count: usize,
    /// The one with the elements among them.
    elements: bool,
}

#[derive(Debug)]
struct Installed {
    table: Table,
    print: Option<u64>,
}

impl Filter {
    /// Makes the tables that are not there, with all elements.
    fn install(&mut self, wanted: &Wanted, surplus: Surplus) -> io::Result<Made> {
        let mut made = Made::default();
        for (number, installed) in self.tables.iter_mut().enumerate() {
            match self.socket.find(&installed.table)? {
                Found::This(print) if installed.print.is_none_or(|known| known == print) => {
                    installed.print = Some(print);
                }
                // An earlier build's may be full of what we have not heard of yet.
                Found::Other if surplus == Surplus::Keep => {}
                Found::This(_) | Found::Other | Found::Nothing => {
                    let elements = if number == 0 { all_elements(wanted) } else { Vec::new() };
                    let print = self.socket.install(&installed.table, &elements)?;
                    installed.print = Some(print);
                    made.count += 1;
                    made.elements |= number == 0;
                }
            }
        }
        if made.count > 0 {
            self.generation = self.socket.generation()?;
        }
        Ok(made)
    }

    /// Edits the elements. What somebody else changed since the last look shows at the next one.
    pub(crate) fn edit(&mut self, edits: &[Edit]) -> io::Result<()> {
        if let Some(first) = self.tables.first().filter(|_| !edits.is_empty()) {
            self.generation = self.socket.edit(&first.table, edits, self.generation)?;
        }
        Ok(())
    }

    /// A table that is another build's is looked at again.
    fn note_certainty(&mut self) {
        self.certain = self.tables.iter().all(|table| table.print.is_some());
    }
}

impl Space {
    /// In the namespace of the calling thread.
    pub(crate) fn open(kind: Kind) -> io::Result<Self> {
        let filter = match kind {
            Kind::Container => None,
            Kind::Own | Kind::Host { .. } => Some(Filter {
                socket: NftSocket::open()?,
                changes: Socket::listen(libc::NETLINK_ROUTE, GROUPS)?,
                tables: Vec::new(),
                reason: String::new(),
                generation: UNKNOWN,
                certain: false,
            }),
        };
        let route = RouteSocket::open()?;
        Ok(Self { route, kind, links: BTreeMap::new(), missed: false, filter, doubtful: true })
    }

    /// The tables that the namespace should have; the first holds all elements. They are made when
    /// `reason`, which says what they are made of, is another than before.
    pub(crate) fn set_tables(&mut self, reason: String, make: impl FnOnce() -> Vec<Table>) {
        if let Some(filter) = self.filter.as_mut().filter(|filter| filter.reason != reason) {
            let installed = |table| Installed { table, print: None };
            filter.tables = make().into_iter().map(installed).collect();
            filter.reason = reason;
            filter.certain = false;
            self.doubtful = true;
        }
    }

    /// Whether there is such a set, in a table of this name that anybody made.
    pub(crate) fn has_set(&mut self, table: &str, set: &str) -> io::Result<bool> {
        self.filter.as_mut().map_or(Ok(false), |filter| filter.socket.has_set(INET, table, set))
    }

    pub(crate) fn remove_table(&mut self, family: u8, name: &str) -> io::Result<()> {
        match &mut self.filter {
            Some(filter) => filter.socket.remove(family, name),
            None => Ok(()),
        }
    }

    pub(crate) fn filter(&mut self) -> Option<&mut NftSocket> {
        self.filter.as_mut().map(|filter| &mut filter.socket)
    }

    /// Number of a link by name; `None`: it is not there.
    pub(crate) fn index(&mut self, name: &str) -> io::Result<Option<u32>> {
        if !self.links.contains_key(name) {
            self.learn_links()?;
        }
        Ok(self.links.get(name).copied())
    }

    /// The links that were there at the last look, with their indexes.
    pub(crate) fn links(&self) -> &BTreeMap<String, u32> {
        &self.links
    }

    /// As [`Space::index`], but the kernel is asked once only, however many are missing.
    fn found(&mut self, name: &str) -> io::Result<Option<u32>> {
        if self.missed {
            return Ok(self.links.get(name).copied());
        }
        let found = self.index(name)?;
        self.missed = found.is_none();
        Ok(found)
    }

    /// As [`Space::index`], asked of the kernel.
    pub(crate) fn index_of(&mut self, name: &str) -> io::Result<Option<u32>> {
        let found = self.route.index_of(name)?;
        match found {
            Some(index) => self.links.insert(name.to_owned(), index),
            None => self.links.remove(name),
        };
        Ok(found)
    }

    /// A link got this name.
    pub(crate) fn note_name(&mut self, index: u32, name: &str) {
        self.links.retain(|_, known| *known != index);
        self.links.insert(name.to_owned(), index);
    }

    pub(crate) fn learn_links(&mut self) -> io::Result<Vec<route::Link>> {
        let links = self.route.links()?;
        self.links = links.iter().map(|link| (link.name.clone(), link.index)).collect();
        Ok(links)
    }

    /// The next repair compares everything.
    pub(crate) fn doubt(&mut self) {
        self.doubtful = true;
        self.lose_certainty();
    }

    /// Whether somebody may have changed something since the last repair. Cheap, never waits.
    pub(crate) fn is_doubtful(&mut self) -> bool {
        if let Some(filter) = &mut self.filter {
            self.doubtful |= filter.changes.heard();
            self.doubtful |=
                filter.socket.generation().map_or(true, |now| now != filter.generation);
        }
        self.doubtful
    }

    /// Carries out changes to a namespace that is as it was left.
    pub(crate) fn apply(&mut self, changes: &Changes) -> io::Result<()> {
        self.apply_after(Vec::new(), changes)
    }

    /// As [`Space::apply`], with what else is to be there first.
    pub(crate) fn apply_after(&mut self, first: Vec<Message>, changes: &Changes) -> io::Result<()> {
        let result = self.try_apply(first, changes);
        if result.is_err() {
            self.doubt();
        }
        result
    }

    fn try_apply(&mut self, first: Vec<Message>, changes: &Changes) -> io::Result<()> {
        self.missed = false;
        let mut hops = Hops::default();
        self.prepare(&mut hops, &changes.routes, Hops::ROUTES_MIN)?;
        let mut additions = first;
        additions.extend(self.additions(changes, &hops)?);
        self.route.batch(additions, route::PRESENT)?;
        self.edit(&changes.edits)?;
        self.edit(&changes.later)?;
        let removals = self.removals(changes)?;
        self.route.batch(removals, ABSENT)
    }

    fn edit(&mut self, edits: &[Edit]) -> io::Result<()> {
        self.filter.as_mut().map_or(Ok(()), |filter| filter.edit(edits))
    }

    /// Takes the tables apart from the routes: the kernel has a lock for each. Until they are
    /// joined nobody listens, as many messages about our own routes say no more than one.
    pub(crate) fn part(&mut self) -> io::Result<Option<Filter>> {
        if let Some(filter) = &self.filter {
            filter.changes.leave(GROUPS)?;
        }
        Ok(self.filter.take())
    }

    pub(crate) fn join(&mut self, filter: Filter) -> io::Result<()> {
        let filter = self.filter.insert(filter);
        filter.changes.join(GROUPS)
    }

    /// Lays some of very many routes that come one part after another; `hops` are those of the
    /// parts before, and `all` says how many there are about.
    pub(crate) fn lay(
        &mut self,
        routes: Vec<(RouteKey, netplan::RouteTo)>,
        hops: &mut Hops,
        all: usize,
    ) -> io::Result<()> {
        self.missed = false;
        let least = Hops::ROUTES_MIN * routes.len() / all.max(routes.len()).max(1);
        self.prepare(hops, &routes, least)?;
        let mut additions = Vec::new();
        self.route_additions(&routes, hops, &mut additions)?;
        self.route.batch(additions, route::PRESENT)
    }

    /// Makes those that many of the routes share, in a namespace that is ours.
    fn prepare(
        &mut self,
        hops: &mut Hops,
        routes: &[(RouteKey, netplan::RouteTo)],
        least: usize,
    ) -> io::Result<()> {
        if self.kind != Kind::Own || routes.len() < Hops::ROUTES_MIN {
            return Ok(());
        }
        let Some(index) = self.found(link::VXLAN)? else { return Ok(()) };
        let on_it = |to: &&netplan::RouteTo| to.link.as_deref() == Some(link::VXLAN);
        let routes = routes.iter().map(|(_, to)| to).filter(on_it);
        hops.prepare(&mut self.route, routes.filter_map(|to| Some((index, to.via?))), least)
    }

    /// What belongs to a link that is not there has to wait for it.
    fn additions(&mut self, changes: &Changes, hops: &Hops) -> io::Result<Vec<Message>> {
        let mut all = Vec::new();
        for (name, net) in &changes.addresses {
            let Some(index) = self.found(name)? else { continue };
            all.push(match self.kind {
                Kind::Container => route::add_address(index, *net),
                Kind::Own | Kind::Host { .. } => route::add_connected_address(index, *net),
            });
        }
        for ((name, address), hardware) in &changes.neighbours {
            let Some(index) = self.found(name)? else { continue };
            all.push(route::add_neighbour(index, *address, *hardware));
        }
        for (hardware, at) in &changes.forwarding {
            let Some(index) = self.found(link::VXLAN)? else { continue };
            all.push(route::add_forwarding(index, *hardware, *at));
        }
        self.route_additions(&changes.routes, hops, &mut all)?;
        Ok(all)
    }

    fn route_additions(
        &mut self,
        routes: &[(RouteKey, netplan::RouteTo)],
        hops: &Hops,
        all: &mut Vec<Message>,
    ) -> io::Result<()> {
        all.reserve(routes.len());
        for (key, to) in routes {
            let index = match to.link {
                Some(name) => match self.found(&name)? {
                    Some(index) => Some(index),
                    None => continue,
                },
                None => None,
            };
            let hop = index.zip(to.via).and_then(|(index, via)| hops.of(index, via));
            let to = RouteTo { link: index, via: to.via, hop, source: to.source, mtu: to.mtu };
            all.push(route::add_route(key.table, key.net, to));
        }
        Ok(())
    }

    fn removals(&mut self, changes: &Changes) -> io::Result<Vec<Message>> {
        let mut all = Vec::new();
        for key in &changes.routes_gone {
            all.push(route::delete_route(key.table, key.net));
        }
        for (name, address) in &changes.neighbours_gone {
            let Some(index) = self.found(name)? else { continue };
            all.push(route::delete_neighbour(index, *address));
        }
        for hardware in &changes.forwarding_gone {
            let Some(index) = self.found(link::VXLAN)? else { continue };
            all.push(route::delete_forwarding(index, *hardware));
        }
        for (name, net) in &changes.addresses_gone {
            let Some(index) = self.found(name)? else { continue };
            all.push(route::delete_address(index, *net));
        }
        Ok(all)
    }

    /// Compares everything with the kernel and makes it as wanted; answers how much differed.
    pub(crate) fn repair(&mut self, wanted: &Wanted, surplus: Surplus) -> io::Result<usize> {
        let result = self.try_repair(wanted, surplus);
        self.doubtful = result.is_err();
        if result.is_err() {
            self.lose_certainty();
        }
        result
    }

    fn try_repair(&mut self, wanted: &Wanted, surplus: Surplus) -> io::Result<usize> {
        let mut certain = self.filter.is_none();
        if let Some(filter) = &mut self.filter {
            // What happens from here on is heard by the next look.
            filter.changes.heard();
            let generation = filter.socket.generation()?;
            certain = filter.certain && generation == filter.generation;
            filter.generation = generation;
        }
        if !certain && self.is_to_be_filled(wanted)? {
            return self.fill(wanted, surplus);
        }
        let mut installed = 0;
        let mut observed = self.observe()?;
        let changes = if certain {
            wanted.route_changes_from(&observed, surplus)
        } else {
            let made = match &mut self.filter {
                Some(filter) => filter.install(wanted, surplus)?,
                None => Made::default(),
            };
            installed = made.count;
            if made.elements {
                // They were made with the table.
                wanted.route_changes_from(&observed, surplus)
            } else {
                observed.elements = self.observe_elements()?;
                wanted.changes_from(&observed, surplus)
            }
        };
        if !changes.is_empty() {
            tracing::debug!(?changes, "a namespace is not as wanted");
        }
        self.try_apply(Vec::new(), &changes)?;
        if let Some(filter) = &mut self.filter {
            filter.note_certainty();
        }
        Ok(changes.len() + installed)
    }

    /// There is no table yet, and much is to be put into it.
    fn is_to_be_filled(&mut self, wanted: &Wanted) -> io::Result<bool> {
        let Some(filter) = &mut self.filter else { return Ok(false) };
        let Some(first) = filter.tables.first() else { return Ok(false) };
        let count: usize = wanted.elements.values().map(Elements::len).sum();
        Ok(count > FILLED_MIN && !filter.socket.is_there(&first.table)?)
    }

    /// Makes tables and routes side by side: the kernel has a lock for each.
    fn fill(&mut self, wanted: &Wanted, surplus: Surplus) -> io::Result<usize> {
        let Some(mut filter) = self.part()? else { return Ok(0) };
        let (made, routed) = std::thread::scope(|scope| {
            let made = scope.spawn(|| filter.install(wanted, surplus));
            let routed = self.repair_routes(wanted, surplus);
            (made.join(), routed)
        });
        filter.note_certainty();
        self.join(filter)?;
        let made = made.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok(made?.count + routed?)
    }

    fn repair_routes(&mut self, wanted: &Wanted, surplus: Surplus) -> io::Result<usize> {
        let changes = wanted.route_changes_from(&self.observe()?, surplus);
        self.try_apply(Vec::new(), &changes)?;
        Ok(changes.len())
    }

    fn lose_certainty(&mut self) {
        if let Some(filter) = &mut self.filter {
            filter.certain = false;
        }
    }

    /// How a namespace differs from what is wanted.
    pub(crate) fn differences(&mut self, wanted: &Wanted) -> io::Result<Changes> {
        let mut observed = self.observe()?;
        observed.elements = self.observe_elements()?;
        Ok(wanted.changes_from(&observed, Surplus::Remove))
    }

    /// The elements of one set of the first table; a table or set that is not there has none.
    pub(crate) fn elements_of(&mut self, set: &str) -> io::Result<Elements> {
        let Some(filter) = &mut self.filter else { return Ok(Elements::new()) };
        let Some(first) = filter.tables.first() else { return Ok(Elements::new()) };
        match filter.socket.elements_of(&first.table, set) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Elements::new()),
            elements => elements,
        }
    }

    /// What the counters of the first table say.
    pub(crate) fn counts(&mut self) -> io::Result<BTreeMap<String, u64>> {
        let Some(filter) = &mut self.filter else { return Ok(BTreeMap::new()) };
        let Some(first) = filter.tables.first() else { return Ok(BTreeMap::new()) };
        filter.socket.counts(&first.table)
    }

    /// What the kernel holds of what could be ours.
    fn observe(&mut self) -> io::Result<Wanted> {
        let names: BTreeMap<u32, String> =
            self.learn_links()?.into_iter().map(|link| (link.index, link.name)).collect();
        let ours = |index: u32| {
            let name = names.get(&index)?;
            match &self.kind {
                Kind::Host { link } if link != name => None,
                _ => Some(name.clone()),
            }
        };
        let mut seen = Wanted::default();
        for (index, net) in self.route.addresses()? {
            if let Some(name) = ours(index).filter(|_| !net.addr().is_loopback()) {
                seen.addresses.insert((name, net));
            }
        }
        for family in [V4, V6] {
            for neighbour in self.route.neighbours(family)? {
                if let Some(name) = ours(neighbour.link).filter(|name| name != link::LOOPBACK) {
                    seen.neighbours.insert((name, neighbour.address), neighbour.hardware);
                }
            }
            if matches!(self.kind, Kind::Host { .. }) {
                continue;
            }
            for route in self.route.routes(family)? {
                if self.kind.is_ours(route.protocol) {
                    let to = netplan::RouteTo {
                        link: names
                            .get(&route.link)
                            .filter(|_| is_led(&route))
                            .map(|name| LinkName::new(name)),
                        via: route.via,
                        source: route.source,
                        mtu: route.mtu,
                    };
                    seen.routes.insert(RouteKey { table: route.table, net: route.net }, to);
                }
            }
        }
        if self.kind == Kind::Own
            && let Some(index) = self.links.get(link::VXLAN)
        {
            seen.forwarding = self.route.forwarding(*index)?.into_iter().collect();
        }
        Ok(seen)
    }

    fn observe_elements(&mut self) -> io::Result<BTreeMap<&'static str, Elements>> {
        let Some(filter) = &mut self.filter else { return Ok(BTreeMap::new()) };
        let Some(first) = filter.tables.first() else { return Ok(BTreeMap::new()) };
        match filter.socket.elements(&first.table) {
            // A table of an earlier build may lack a set.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            elements => elements,
        }
    }
}

fn is_led(route: &route::Route) -> bool {
    route.kind == libc::RTN_UNICAST
}

/// Everything as additions; what leads to slots comes after the slots.
fn all_elements(wanted: &Wanted) -> Vec<Edit> {
    let (mut slots, mut verdicts) = (Vec::new(), Vec::new());
    for (set, elements) in &wanted.elements {
        for (key, value) in elements {
            let edit = Edit::Put { set, key: *key, value: *value };
            match value {
                Value::Class(_) => verdicts.push(edit),
                Value::Member | Value::Bytes(_) => slots.push(edit),
            }
        }
    }
    slots.extend(verdicts);
    slots
}

/// Elements that take longer than a thread.
const FILLED_MIN: usize = 2_000;

/// Links, neighbours, addresses, routes and rules, of both families.
const GROUPS: &[libc::c_int] = &[1, 3, 5, 7, 8, 9, 11, 19];
