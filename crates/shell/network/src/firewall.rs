//! Living beside a firewall of somebody else on this host.
//!
//! Owns: rules of ours at the end of chains that drop what nobody else decided about, and the chain
//! in which the administrator may forbid anything first.
//! Does not know: why a chain drops.
//! Invariant: nothing of ours stands before a rule of the chain's owner, but for one that drops
//! everything; so an explicit word of the administrator wins.

use std::io;

use crate::legacy::{Chain, Legacy};
use crate::namespace::enter;
use crate::nft::expression::{Base, Family, Rule};
use crate::nft::foreign::{Foreign, ForeignRule};
use crate::nft::table::{BaseChain, NftSocket};
use crate::nft::{INET, hook};
use crate::node::Node;
use crate::tables::UDP;

impl Node {
    /// Makes our traffic pass chains whose last word is to drop; answers how many rules were set.
    pub(crate) fn pass_firewalls(&mut self) -> io::Result<usize> {
        let (comment, wanted) = (self.names.table.clone(), self.passing_rules());
        let Some(socket) = self.host.filter() else { return Ok(0) };
        let chains = socket.base_chains()?;
        let mut count = 0;
        if !chains.iter().any(|chain| chain.name == USER_CHAIN) {
            socket.make_user_chain(USER_CHAIN)?;
            count += 1;
        }
        for chain in chains.iter().filter(|chain| is_foreign(chain)) {
            let rules = match chain.hook {
                hook::FORWARD => &wanted.0,
                hook::INPUT => &wanted.1,
                _ => continue,
            };
            // A chain that vanishes meanwhile needs nothing.
            match place(socket, chain, &comment, rules) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                placed => count += placed?,
            }
        }
        if count > 0 {
            self.host.doubt();
        }
        Ok(count)
    }

    /// What is forwarded, and what is received.
    fn passing_rules(&self) -> (Vec<Rule>, Vec<Rule>) {
        let gateway = &self.names.gateway;
        let open = self.planner.bridges().iter().filter(|(_, bridge)| !bridge.internal);
        let links = std::iter::once(gateway).chain(open.map(|(link, _)| link));
        let forwarded = links
            .flat_map(|link| {
                [Rule::new().in_link(link).accept(), Rule::new().out_link(link).accept()]
            })
            .collect();
        let pass = |port: u16| {
            let rule = Rule::new().protocol(UDP).load(Base::Transport, 2, 2, 0);
            rule.is(0, &port.to_be_bytes()).accept()
        };
        (forwarded, self.open_ports().into_iter().map(pass).collect())
    }

    /// UDP ports that other nodes have to reach: VXLAN's, and those of encrypted networks while
    /// there is one.
    fn open_ports(&self) -> Vec<u16> {
        let Some(own) = self.planner.own() else { return Vec::new() };
        let encrypted = if self.planner.is_tunnelled() { &own.encryption.ports[..] } else { &[] };
        std::iter::once(own.data_path_port).chain(encrypted.iter().copied()).collect()
    }

    /// Takes our rules out of others' chains.
    pub(crate) fn leave_firewalls(&mut self) -> io::Result<()> {
        let comment = self.names.table.clone();
        let Some(socket) = self.host.filter() else { return Ok(()) };
        let chains = socket.base_chains()?;
        for chain in chains.iter().filter(|chain| is_foreign(chain)) {
            for rule in socket.foreign_rules(chain)?.iter().filter(|r| r.comment == comment) {
                socket.delete_foreign(chain, rule.handle)?;
            }
        }
        if !chains.iter().any(|chain| is_daemons(&chain.table) && chain.table != comment) {
            socket.remove(INET, USER_CHAIN)?;
        }
        Ok(())
    }

    /// Chains of others that drop what nobody decided about, in words.
    pub(crate) fn foreign_drops(&mut self) -> io::Result<Vec<String>> {
        let mut all = self.legacy_drops()?;
        let Some(socket) = self.host.filter() else { return Ok(all) };
        for chain in socket.base_chains()?.iter().filter(|chain| is_foreign(chain)) {
            let what = match chain.hook {
                hook::FORWARD => "published ports and the way out of containers pass",
                hook::INPUT => "of this node's own ports only the data path's passes",
                _ => continue,
            };
            let rules = socket.foreign_rules(chain)?;
            if chain.drops || rules.last().is_some_and(|rule| rule.ends) {
                let (table, name) = (&chain.table, &chain.name);
                all.push(format!(
                    "the firewall chain {name} of table {table} drops by default: {what} by rules \
                     of ours at its end"
                ));
            }
        }
        Ok(all)
    }
}

impl Node {
    /// The same of iptables-legacy, whose chains we do not write to.
    fn legacy_drops(&mut self) -> io::Result<Vec<String>> {
        let (gateway, ports) = (self.names.gateway.clone(), self.open_ports());
        let over_v6 = self.address.is_some_and(|address| address.is_ipv6());
        let mut all = Vec::new();
        for (family, tool) in [(Family::V4, "iptables-legacy"), (Family::V6, "ip6tables-legacy")] {
            let Some(table) = enter(&self.namespace, move || Legacy::read(family))? else {
                continue;
            };
            let head =
                |chain: Chain| format!("the chain {} of {tool} drops by default", chain.name());
            if table.drops(Chain::Forward) && !table.passes_link(&gateway) {
                all.push(format!(
                    "{}: published ports and the way out of containers do not pass; \
                     `{tool} -I FORWARD -i {gateway} -j ACCEPT` and the same with -o lets them",
                    head(Chain::Forward)
                ));
            }
            if over_v6 != (family == Family::V6) || !table.drops(Chain::Input) {
                continue;
            }
            let closed = ports.iter().filter(|port| !table.passes_port(**port));
            all.extend(closed.map(|port| {
                format!(
                    "{}: the data path does not pass; \
                     `{tool} -I INPUT -p udp --dport {port} -j ACCEPT` lets it",
                    head(Chain::Input)
                )
            }));
        }
        Ok(all)
    }
}

/// Sets our rules after all of the chain's own, but before one that drops everything.
fn place(
    socket: &mut NftSocket,
    chain: &BaseChain,
    comment: &str,
    wanted: &[Rule],
) -> io::Result<usize> {
    let rules = socket.foreign_rules(chain)?;
    let is_ours = |rule: &&ForeignRule| rule.comment == comment;
    let last = rules.last().filter(|rule| rule.ends);
    let before = rules.len() - usize::from(last.is_some());
    let ours = rules.iter().filter(is_ours).count();
    if !chain.drops && last.is_none() {
        // It does not drop by itself any more.
        for rule in rules.iter().filter(is_ours) {
            socket.delete_foreign(chain, rule.handle)?;
        }
        return Ok(ours);
    }
    let place = before.saturating_sub(wanted.len());
    if ours == wanted.len() && rules[place..before].iter().all(|rule| is_ours(&rule)) {
        return Ok(0);
    }
    for rule in rules.iter().filter(is_ours) {
        socket.delete_foreign(chain, rule.handle)?;
    }
    let foreign = Foreign { chain, comment, before: last.map(|rule| rule.handle) };
    for rule in wanted {
        socket.add_foreign(&foreign, rule)?;
    }
    Ok(wanted.len())
}

fn is_foreign(chain: &BaseChain) -> bool {
    !is_daemons(&chain.table) && chain.table != USER_CHAIN
}

/// A table of a daemon of ours, whichever instance.
fn is_daemons(table: &str) -> bool {
    table.starts_with("shoal-")
}

/// For the administrator: we make it, empty, and never look into it. Its table has the same name.
const USER_CHAIN: &str = "shoal_user";
