//! Links of a container that were laid or claimed: brought up, found there, and led to.
//!
//! Owns: the moment between a pair of links and what goes through it.
//! Does not know: which links a container should have.
//! Invariant: when it has ended, our end is there and the kernel has seen the other one's carrier.

use std::io;
use std::os::fd::OwnedFd;

use netplan::{LocalLink, Scope, Wanted};

use crate::attach::Lead;
use crate::container::{self, Interface};
use crate::node::Node;
use crate::pair::{self, Pair};
use crate::route;
use crate::space::Space;

impl Node {
    /// Brings the container's ends up, and what leads to those that were laid. Those that were
    /// `claimed` are up; answered are those of them whose end of ours is not there: it went with
    /// the namespace that it was in.
    pub(crate) fn set_up<'a>(
        &mut self,
        inside: &mut Space,
        known: &[(&'a LocalLink, Interface)],
        (laid, claimed): (&[&'a LocalLink], &[&LocalLink]),
        lead: Lead,
    ) -> io::Result<Vec<&'a LocalLink>> {
        if laid.len() > claimed.len() {
            let links = inside.learn_links()?.into_iter();
            let ours = links.filter_map(|link| {
                let (end, interface) = known.iter().find(|(_, one)| one.name == link.name)?;
                let hardware = self.local_network(end).is_none().then_some(end.hardware);
                (!claimed.contains(end)).then(|| pair::set_up(&link, hardware, interface))
            });
            inside.route.batch(ours.collect(), route::ABSENT)?;
        }
        let mut lost = Vec::new();
        for end in laid {
            if !self.settle_carrier(end)? && claimed.contains(end) {
                lost.push(*end);
            }
        }
        for end in laid.iter().filter(|_| lead == Lead::Here) {
            self.settle_link(end)?;
        }
        Ok(lost)
    }

    /// Lays links anew that were made ahead of time and went since then.
    pub(crate) fn lay_lost(
        &mut self,
        lost: &[&LocalLink],
        known: &[(&LocalLink, Interface)],
        (inside, namespace): (&mut Space, &OwnedFd),
        alias: &str,
    ) -> io::Result<()> {
        for (end, interface) in known.iter().filter(|(end, _)| lost.contains(end)) {
            if let Some(far) = inside.index_of(&interface.name)? {
                inside.route.batch(vec![route::delete_link(far)], route::ABSENT)?;
            }
            let scope = end.network.map_or(Scope::Mesh, Scope::Overlay);
            if let Some(space) = self.spaces.get_mut(&scope) {
                Pair { end, interface, alias }.lay(space, namespace)?;
            }
        }
        if !lost.is_empty() {
            self.set_up(inside, known, (lost, &[]), Lead::Elsewhere)?;
        }
        Ok(())
    }

    /// Our end was up before the other one. It drops what it should send until the kernel has seen
    /// the carrier, which it does later by itself, or now when it is asked for the link (since
    /// Linux 6.8). Answers whether our end is there.
    fn settle_carrier(&mut self, end: &LocalLink) -> io::Result<bool> {
        if end.link.is_empty() {
            return Ok(true);
        }
        let space = match self.local_network(end) {
            Some(_) => Some(&mut self.host),
            None => self.spaces.get_mut(&end.network.map_or(Scope::Mesh, Scope::Overlay)),
        };
        let Some(space) = space else { return Ok(true) };
        Ok(space.index_of(&end.link)?.is_some())
    }

    /// What leads to a link that was laid again is there again.
    fn settle_link(&mut self, end: &LocalLink) -> io::Result<()> {
        let scope = end.network.map_or(Scope::Mesh, Scope::Overlay);
        let Some(wanted) = self.planner.wanted(scope) else { return Ok(()) };
        let Some(space) = self.spaces.get_mut(&scope) else { return Ok(()) };
        let mut part = Wanted::default();
        for address in end.v4.map(Into::into).into_iter().chain(end.v6.map(Into::into)) {
            let key =
                netplan::RouteKey { table: netplan::MAIN_TABLE, net: ipnet::IpNet::from(address) };
            if let Some(to) = wanted.routes.get(&key) {
                part.routes.insert(key, *to);
            }
            let key = (end.link.clone(), address);
            if let Some(hardware) = wanted.neighbours.get(&key) {
                part.neighbours.insert(key, *hardware);
            }
        }
        space.apply(&container::additions(&part))
    }
}
