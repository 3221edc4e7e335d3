//! Namespaces of networks and of the mesh: that they are there, with their links and tables.
//!
//! Owns: making them, adopting an earlier daemon's, ending them.
//! Does not know: what is routed or filtered in them.
//! Invariant: a VXLAN device's packets come and go in the host's namespace, but for those of an
//! encrypted network, which know the tunnel's only; the device is in neither.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netplan::{
    HOST_HARDWARE, MARK, MARK_MASK, MESH_HARDWARE, RETURN_TABLE, Scope, link, node_hardware, set,
    tunnel_v4,
};
use types::{NetworkId, NetworkPart};

use crate::namespace::enter;
use crate::netlink::Message;
use crate::node::{MESH, Node, TUNNEL};
use crate::pair::{PairEnd, add_pair};
use crate::route::{self, Elsewhere, V4, V6, Vxlan};
use crate::space::{Kind, Space};
use crate::sysctl;
use crate::tables::host::HostTable;
use crate::tables::{self, OWN_TABLE};

impl Node {
    /// Makes the namespace of a scope, its links and the list of its tables, unless they are there.
    pub(crate) fn ensure(&mut self, scope: Scope) -> io::Result<()> {
        match scope {
            Scope::Tunnel => self.ensure_tunnel(),
            Scope::Host => self.ensure_host(),
            Scope::Mesh => self.ensure_mesh(),
            Scope::Overlay(id) => {
                let Some(part) = self.planner.network(id).cloned() else { return Ok(()) };
                let known = self.spaces.contains_key(&scope);
                self.ensure_space(scope)?;
                self.set_overlay_table(id, &part, known)?;
                self.ensure_vxlan(scope, &part)
            }
        }
    }

    /// An earlier daemon's namespace that balances goes on with it: connections that came through a
    /// virtual address may be there still.
    fn set_overlay_table(
        &mut self,
        id: NetworkId,
        part: &NetworkPart,
        known: bool,
    ) -> io::Result<()> {
        let Some(space) = self.spaces.get_mut(&Scope::Overlay(id)) else { return Ok(()) };
        if !known && space.has_set(OWN_TABLE, set::CLASS)? {
            self.planner.keep_balanced(id);
        }
        if !self.planner.is_balanced(id) {
            space.set_tables("plain".to_owned(), || vec![tables::overlay::plain()]);
            return Ok(());
        }
        let gateways: Vec<IpAddr> = part.subnets.iter().map(|(_, g)| *g).collect();
        space.set_tables(format!("{gateways:?}"), || vec![tables::overlay::balancing(&gateways)]);
        Ok(())
    }

    fn ensure_host(&mut self) -> io::Result<()> {
        let table = HostTable {
            name: &self.names.table,
            gateway: &self.names.gateway,
            links: self.links,
            vxlan_port: self.vxlan_port(),
            time_outs: self.time_outs,
        };
        self.host.set_tables(format!("{table:?}"), || vec![table.table()]);
        self.ensure_mesh_link()?;
        let gateway = self.names.gateway.clone();
        enter(&self.namespace, move || {
            sysctl::host()?;
            sysctl::gateway(&gateway);
            Ok(())
        })
    }

    fn ensure_mesh(&mut self) -> io::Result<()> {
        self.ensure_space(Scope::Mesh)?;
        self.ensure_mesh_link()?;
        let gateways = [self.links.gateway_v4().into(), self.links.gateway_v6().into()];
        let (ingress, port) = (self.planner.ingress().cloned(), self.vxlan_port());
        if let Some(part) = &ingress {
            self.ensure_vxlan(Scope::Mesh, part)?;
        }
        let Some(space) = self.spaces.get_mut(&Scope::Mesh) else { return Ok(()) };
        // The hook is the device's: it goes with it.
        let device = space.index(link::VXLAN)?;
        space.set_tables(format!("{gateways:?} {port:?} {device:?}"), || {
            let mut all = vec![tables::mesh::table(&gateways, port)];
            all.extend(device.map(|_| tables::mesh::return_table()));
            all
        });
        for family in [V4, V6] {
            let rules = space.route.rules(family)?;
            if !rules.contains(&(MARK, MARK_MASK, RETURN_TABLE)) {
                let rule = route::add_rule(family, MARK, MARK_MASK, RETURN_TABLE);
                space.route.batch(vec![rule], route::PRESENT)?;
            }
        }
        Ok(())
    }

    pub(crate) fn sandbox_name(scope: Scope) -> String {
        match scope {
            Scope::Overlay(id) => id.to_string(),
            Scope::Tunnel => TUNNEL.to_owned(),
            Scope::Mesh | Scope::Host => MESH.to_owned(),
        }
    }

    pub(crate) fn sandbox_is_there(&self, scope: Scope) -> bool {
        self.sandboxes.is_mounted(&Self::sandbox_name(scope))
    }

    pub(crate) fn ensure_space(&mut self, scope: Scope) -> io::Result<()> {
        let name = Self::sandbox_name(scope);
        let switches = if scope == Scope::Tunnel { sysctl::tunnel } else { sysctl::router };
        if !self.sandboxes.is_mounted(&name) {
            self.spaces.remove(&scope);
            let space = self.sandboxes.make(&name, move || {
                switches();
                let mut space = Space::open(Kind::Own)?;
                if let Some(loopback) = space.index(link::LOOPBACK)? {
                    space.route.request(route::set_up(loopback))?;
                }
                Ok(space)
            })?;
            self.spaces.insert(scope, space);
        } else if !self.spaces.contains_key(&scope) {
            let space = self.sandboxes.enter(&name, move || {
                switches();
                Space::open(Kind::Own)
            })?;
            self.spaces.insert(scope, space);
        }
        Ok(())
    }

    /// The device of a network, as it should be; one that is otherwise is made anew. So is one
    /// whose packets come and go elsewhere: that an encrypted network has no way but the tunnel
    /// depends on nothing else.
    fn ensure_vxlan(&mut self, scope: Scope, part: &NetworkPart) -> io::Result<()> {
        let Some(own) = self.planner.own() else { return Ok(()) };
        let (number, port) = (own.number, own.data_path_port);
        let local = if part.encrypted { Some(tunnel_v4(number).into()) } else { self.address };
        let Some(local) = local else { return Ok(()) };
        let hardware = node_hardware(number);
        let wanted = Vxlan { vni: part.vni, port, local: Some(local) };
        let underlay = if part.encrypted {
            self.ensure_space(Scope::Tunnel)?;
            self.sandboxes.open_one(TUNNEL)?
        } else {
            self.namespace.try_clone()?
        };
        let Some(space) = self.spaces.get_mut(&scope) else { return Ok(()) };
        let there = space.learn_links()?.into_iter().find(|link| link.name == link::VXLAN);
        if let Some(link) = there {
            let underlay = space.route.number_of(&underlay)?;
            if (link.vxlan, link.hardware) == (Some(wanted), hardware)
                && underlay.is_some()
                && link.underlay == underlay
            {
                if !link.up || link.mtu != part.mtu {
                    space.route.request(route::dress(link.index, &part.name, part.mtu))?;
                }
                return Ok(());
            }
            space.route.batch(vec![route::delete_link(link.index)], route::ABSENT)?;
        }
        let namespace = self.sandboxes.open_one(&Self::sandbox_name(scope))?;
        let device = Elsewhere { name: link::VXLAN, mtu: part.mtu, namespace: &namespace };
        self.make_vxlan(part, || route::add_vxlan(&device, &wanted, hardware, !part.encrypted))?;
        let Some(space) = self.spaces.get_mut(&scope) else { return Ok(()) };
        space.learn_links()?;
        let Some(index) = space.index(link::VXLAN)? else { return Ok(()) };
        space.doubt();
        space
            .route
            .batch(vec![route::quiet(index, false), route::dress(index, &part.name, part.mtu)], &[])
    }

    /// From inside the namespace that its packets are to go to.
    fn make_vxlan(&mut self, part: &NetworkPart, make: impl Fn() -> Message) -> io::Result<()> {
        let underlay = match part.encrypted {
            true => self.spaces.get_mut(&Scope::Tunnel),
            false => Some(&mut self.host),
        };
        let limit = Instant::now() + DEVICE_PATIENCE;
        let Some(underlay) = underlay else {
            return Err(io::Error::other("the tunnel's namespace is missing"));
        };
        loop {
            match underlay.route.request(make()) {
                // A removed namespace takes its device along some time later.
                Err(error)
                    if error.raw_os_error() == Some(libc::EEXIST) && Instant::now() < limit =>
                {
                    std::thread::sleep(DEVICE_RETRY);
                }
                Err(error) => {
                    let text = format!("VXLAN device {} of network {}", part.vni, part.name);
                    return Err(io::Error::new(error.kind(), format!("{text}: {error}")));
                }
                Ok(()) => return Ok(()),
            }
        }
    }

    /// The pair between the host and the mesh.
    fn ensure_mesh_link(&mut self) -> io::Result<()> {
        let near = self.host_link()?;
        let Some(space) = self.spaces.get_mut(&Scope::Mesh) else { return Ok(()) };
        let far = space.learn_links()?.into_iter().find(|link| link.name == link::UP);
        if let (Some(_), Some(far)) = (near, &far)
            && far.up
        {
            return Ok(());
        }
        // An end alone leads nowhere.
        if let Some(near) = near {
            self.host.route.batch(vec![route::delete_link(near)], route::ABSENT)?;
        } else if let Some(far) = far {
            space.route.batch(vec![route::delete_link(far.index)], route::ABSENT)?;
        }
        let namespace = self.sandboxes.open_one(MESH)?;
        let near = PairEnd {
            name: &self.names.gateway,
            hardware: HOST_HARDWARE,
            mtu: LINK_MTU,
            namespace: None,
        };
        let far = PairEnd {
            name: link::UP,
            hardware: MESH_HARDWARE,
            mtu: LINK_MTU,
            namespace: Some(&namespace),
        };
        self.host.route.request(add_pair(&near, &far))?;
        space.learn_links()?;
        self.host.learn_links()?;
        space.doubt();
        self.host.doubt();
        let alias = self.names.alias.clone();
        if let Some(index) = space.index(link::UP)? {
            let all = vec![route::quiet(index, false), route::dress(index, &alias, LINK_MTU)];
            space.route.batch(all, &[])?;
        }
        if let Some(index) = self.host.index(&self.names.gateway)? {
            let all = vec![route::quiet(index, false), route::dress(index, &alias, LINK_MTU)];
            self.host.route.batch(all, &[])?;
        }
        let gateway = self.names.gateway.clone();
        enter(&self.namespace, move || {
            sysctl::gateway(&gateway);
            Ok(())
        })
    }

    /// The host's end of the link to the mesh.
    pub(crate) fn host_link(&mut self) -> io::Result<Option<u32>> {
        let links = self.host.learn_links()?;
        Ok(links.into_iter().find(|link| link.name == self.names.gateway).map(|link| link.index))
    }

    /// Ends a namespace. The device is removed first: the kernel would do it some time later.
    pub(crate) fn remove_sandbox(&mut self, name: &str) -> io::Result<()> {
        let group = self.names.group;
        let removed = self.sandboxes.enter(name, move || {
            let mut space = Space::open(Kind::Container)?;
            let ours = |link: &route::Link| is_device(&link.name);
            let devices = space.learn_links()?.into_iter().filter(ours);
            let devices: Vec<u32> = devices.map(|link| link.index).collect();
            space.route.delete_links(&devices, group)
        });
        if let Err(error) = removed {
            tracing::debug!(name, %error, "the devices of a namespace could not be removed");
        }
        self.sandboxes.remove(name)
    }
}

/// Those that hold a port of another namespace while they are there.
fn is_device(name: &str) -> bool {
    name == link::VXLAN || link::TUNNELS.contains(&name)
}

/// Between host and mesh; what goes out is cut by the uplink's own size.
const LINK_MTU: u32 = 65_535;

/// How long a device of a namespace that is going away may be in the way.
const DEVICE_PATIENCE: Duration = Duration::from_secs(5);
const DEVICE_RETRY: Duration = Duration::from_millis(20);
