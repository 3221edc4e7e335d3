//! Namespaces of networks and of the mesh: that they are there, with their links and tables.
//!
//! Owns: making them, adopting an earlier daemon's, ending them.
//! Does not know: what is routed or filtered in them.
//! Invariant: a VXLAN device's socket is in the host's namespace, the device never.

use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netplan::{
    HOST_HARDWARE, MARK, MARK_MASK, MESH_HARDWARE, RETURN_TABLE, Scope, link, node_hardware,
};
use types::NetworkPart;

use crate::namespace::enter;
use crate::node::{MESH, Node};
use crate::route::{self, PairEnd, V4, V6, Vxlan};
use crate::space::{Kind, Space};
use crate::sysctl;
use crate::tables;
use crate::tables::host::HostTable;

impl Node {
    /// Makes the namespace of a scope, its links and the list of its tables, unless they are there.
    pub(crate) fn ensure(&mut self, scope: Scope) -> io::Result<()> {
        match scope {
            Scope::Host => self.ensure_host(),
            Scope::Mesh => self.ensure_mesh(),
            Scope::Overlay(id) => {
                let Some(part) = self.planner.network(id).cloned() else { return Ok(()) };
                self.ensure_space(scope)?;
                let gateways: Vec<IpAddr> = part.subnets.iter().map(|(_, g)| *g).collect();
                if let Some(space) = self.spaces.get_mut(&scope) {
                    let reason = format!("{gateways:?}");
                    space.set_tables(reason, || vec![tables::overlay::table(&gateways)]);
                }
                self.ensure_vxlan(scope, &part)
            }
        }
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
            Scope::Mesh | Scope::Host => MESH.to_owned(),
        }
    }

    pub(crate) fn sandbox_is_there(&self, scope: Scope) -> bool {
        self.sandboxes.is_mounted(&Self::sandbox_name(scope))
    }

    fn ensure_space(&mut self, scope: Scope) -> io::Result<()> {
        let name = Self::sandbox_name(scope);
        if !self.sandboxes.is_mounted(&name) {
            self.spaces.remove(&scope);
            let space = self.sandboxes.make(&name, || {
                sysctl::router();
                let mut space = Space::open(Kind::Own)?;
                if let Some(loopback) = space.index(link::LOOPBACK)? {
                    space.route.request(route::set_up(loopback))?;
                }
                Ok(space)
            })?;
            self.spaces.insert(scope, space);
        } else if !self.spaces.contains_key(&scope) {
            let space = self.sandboxes.enter(&name, || {
                sysctl::router();
                Space::open(Kind::Own)
            })?;
            self.spaces.insert(scope, space);
        }
        Ok(())
    }

    /// The device of a network, as it should be; one that is otherwise is made anew.
    fn ensure_vxlan(&mut self, scope: Scope, part: &NetworkPart) -> io::Result<()> {
        let (Some(own), Some(address)) = (self.planner.own(), self.address) else {
            return Ok(());
        };
        let hardware = node_hardware(own.number);
        let wanted = Vxlan { vni: part.vni, port: own.data_path_port, local: Some(address) };
        let Some(space) = self.spaces.get_mut(&scope) else { return Ok(()) };
        let there = space.learn_links()?.into_iter().find(|link| link.name == link::VXLAN);
        match there {
            Some(link) if link.vxlan == Some(wanted) && link.hardware == hardware => {
                if !link.up || link.mtu != part.mtu {
                    space.route.request(route::dress(link.index, &part.name, part.mtu))?;
                }
                return Ok(());
            }
            Some(link) => space.route.batch(vec![route::delete_link(link.index)], route::ABSENT)?,
            None => {}
        }
        let namespace = self.sandboxes.open_one(&Self::sandbox_name(scope))?;
        let limit = Instant::now() + DEVICE_PATIENCE;
        loop {
            let message = route::add_vxlan(link::VXLAN, &wanted, hardware, part.mtu, &namespace);
            match self.host.route.request(message) {
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
                Ok(()) => break,
            }
        }
        space.learn_links()?;
        let Some(index) = space.index(link::VXLAN)? else { return Ok(()) };
        space.doubt();
        space
            .route
            .batch(vec![route::quiet(index, false), route::dress(index, &part.name, part.mtu)], &[])
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
        self.host.route.request(route::add_pair(&near, &far))?;
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
            let Some(index) = space.index(link::VXLAN)? else { return Ok(()) };
            space.route.delete_links(&[index], group)
        });
        if let Err(error) = removed {
            tracing::debug!(name, %error, "the device of a network could not be removed");
        }
        self.sandboxes.remove(name)
    }
}

/// Between host and mesh; what goes out is cut by the uplink's own size.
const LINK_MTU: u32 = 65_535;

/// How long a device of a namespace that is going away may be in the way.
const DEVICE_PATIENCE: Duration = Duration::from_secs(5);
const DEVICE_RETRY: Duration = Duration::from_millis(20);
