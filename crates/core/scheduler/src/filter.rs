//! Which nodes a template's tasks may go to, and why not to the others.
//!
//! Owns: the filters that do not depend on what is placed (ready, constraints, platform), computed
//! once per distinct list, and the words of all filters.
//! Invariant: a node is counted under the first filter that it fails, in the order of `Misses`.

use std::collections::BTreeMap;
use std::rc::Rc;

use types::{ImageName, Platform, Revision};

use crate::nodes::Nodes;

/// Nodes that pass the filters which do not depend on placements.
pub(crate) struct Allowed {
    pub nodes: Vec<bool>,
    pub count: usize,
    pub misses: Misses,
}

/// How many nodes fail which filter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Misses {
    pub not_ready: usize,
    pub resources: usize,
    pub constraints: usize,
    pub platform: usize,
    pub host_ports: usize,
    pub max_replicas: usize,
}

impl Misses {
    /// Swarm's words for it.
    pub(crate) fn text(&self) -> String {
        let nodes =
            |count: usize| if count == 1 { "1 node".into() } else { format!("{count} nodes") };
        let parts: Vec<String> = [
            (self.not_ready, format!("{} not available for new tasks", nodes(self.not_ready))),
            (self.resources, format!("insufficient resources on {}", nodes(self.resources))),
            (
                self.constraints,
                format!("scheduling constraints not satisfied on {}", nodes(self.constraints)),
            ),
            (self.platform, format!("unsupported platform on {}", nodes(self.platform))),
            (
                self.host_ports,
                format!("host-mode port already in use on {}", nodes(self.host_ports)),
            ),
            (
                self.max_replicas,
                format!("max replicas per node limit exceed on {}", nodes(self.max_replicas)),
            ),
        ]
        .into_iter()
        .filter_map(|(count, text)| (count > 0).then_some(text))
        .collect();
        match parts.is_empty() {
            true => "no suitable node (the cluster has no nodes)".into(),
            false => format!("no suitable node ({})", parts.join("; ")),
        }
    }
}

type Key = (Vec<String>, Vec<Platform>);

/// Results by distinct list, for one plan.
#[derive(Default)]
pub(crate) struct Filters {
    allowed: BTreeMap<Key, Rc<Allowed>>,
    /// The last key asked for: most services have no constraints at all.
    plain: Option<Rc<Allowed>>,
    images: BTreeMap<String, Rc<Images>>,
}

/// Which nodes are known to have an image.
pub(crate) struct Images {
    pub has: Vec<bool>,
    /// All have it, or none: the image makes no difference.
    pub uniform: bool,
}

impl Filters {
    pub(crate) fn of(&mut self, nodes: &Nodes<'_>, revision: &Revision) -> Rc<Allowed> {
        let placement = &revision.spec.placement;
        if placement.constraints.is_empty() && placement.platforms.is_empty() {
            let plain = self.plain.get_or_insert_with(|| Rc::new(compute(nodes, revision)));
            return Rc::clone(plain);
        }
        let key = (placement.constraints.clone(), placement.platforms.clone());
        Rc::clone(self.allowed.entry(key).or_insert_with(|| Rc::new(compute(nodes, revision))))
    }

    /// Nodes that are known to have the image.
    pub(crate) fn with_image(&mut self, nodes: &Nodes<'_>, image: &str) -> Rc<Images> {
        if let Some(known) = self.images.get(image) {
            return Rc::clone(known);
        }
        let wanted = reported_form(image);
        let has = |c: &crate::nodes::Candidate<'_>| {
            c.node.description.images.binary_search(&wanted).is_ok()
        };
        let has: Vec<bool> = nodes.list.iter().map(has).collect();
        let uniform = has.iter().all(|has| *has) || !has.iter().any(|has| *has);
        let known = Rc::new(Images { has, uniform });
        self.images.insert(image.to_owned(), Rc::clone(&known));
        known
    }
}

fn compute(nodes: &Nodes<'_>, revision: &Revision) -> Allowed {
    let mut allowed =
        Allowed { nodes: vec![false; nodes.list.len()], count: 0, misses: Misses::default() };
    for (at, candidate) in nodes.list.iter().enumerate() {
        if !candidate.ready {
            allowed.misses.not_ready += 1;
        } else if !revision.constraints_match(candidate.node) {
            allowed.misses.constraints += 1;
        } else if !revision.platform_fits(candidate.node) {
            allowed.misses.platform += 1;
        } else {
            allowed.nodes[at] = true;
            allowed.count += 1;
        }
    }
    allowed
}

/// As nodes report their images; what is not a name, such as an identity, stays as it is.
fn reported_form(image: &str) -> String {
    ImageName::parse(image).map_or_else(|_| image.to_owned(), |name| name.to_string())
}
