//! What is wrong with the network of this node, in words.
//!
//! Owns: looking for it. Does not know: who reads it.
//! Invariant: a condition stands as long as its cause, and has the same words each time.

use std::io;

use types::limits::CONDITION_PORTS_MAX;
use types::{Condition, ConditionCode, PortBinding};

use crate::namespace::enter;
use crate::node::Node;
use crate::sysctl;

impl Node {
    /// Everything that is wrong now.
    pub(crate) fn conditions(&mut self) -> io::Result<Vec<Condition>> {
        let unavailable = self.planner.unavailable().intersection(self.planner.bindings());
        let mut ports: Vec<PortBinding> = unavailable.copied().collect();
        let held = |binding: &PortBinding| {
            format!("port {} is held by a program of this host: not published", words(binding))
        };
        let mut taken: Vec<String> = ports.iter().map(held).collect();
        let contested = self.planner.contested();
        taken.extend(contested.iter().map(|binding| {
            format!("port {} is a container's of this host: not published", words(binding))
        }));
        ports.extend(contested);
        ports.truncate(CONDITION_PORTS_MAX);
        let drops = self.foreign_drops()?;
        let clear = self.clear_text()?;
        let mut full = Vec::new();
        let mut namespaces = vec![(String::from("this host"), self.namespace.try_clone()?)];
        for name in self.sandboxes.list()? {
            if let Ok(namespace) = self.sandboxes.open_one(&name) {
                namespaces.push((format!("the namespace {name}"), namespace));
            }
        }
        for (name, namespace) in namespaces {
            let counts = enter(&namespace, || Ok(sysctl::tracked_connections()))?;
            if let Some((count, most)) = counts
                && count.saturating_mul(100) > most.saturating_mul(TRACKED_PERCENT_MAX)
            {
                full.push(format!(
                    "the connections tracked in {name} fill over {TRACKED_PERCENT_MAX} % of the \
                     table of {most}: raise net.netfilter.nf_conntrack_max"
                ));
            }
        }
        let found = [
            (ConditionCode::PortTaken, taken),
            (ConditionCode::FirewallDrops, drops),
            (ConditionCode::ConntrackFull, full),
            (ConditionCode::ClearText, clear),
        ];
        let found = found.into_iter().filter(|(_, texts)| !texts.is_empty());
        let condition = |(code, texts): (ConditionCode, Vec<String>)| Condition {
            ports: if code == ConditionCode::PortTaken { ports.clone() } else { Vec::new() },
            ..Condition::new(code, texts.join("; "))
        };
        Ok(found.map(condition).collect())
    }
}

fn words(binding: &PortBinding) -> String {
    let (port, protocol) = (binding.port, binding.protocol.name());
    match binding.address {
        Some(address) => format!("{address}:{port}/{protocol}"),
        None => format!("{port}/{protocol}"),
    }
}

/// Beyond it new connections are lost sooner or later.
const TRACKED_PERCENT_MAX: u64 = 80;
