//! Placement constraints: `key==value`, `key!=value`.
//!
//! Owns: the grammar, the closed list of keys, and whether a node satisfies one.
//! Does not know: the store; a node's facts come in through [`Matchable`].
//! Invariant: a constraint that parsed has a key that exists, so a typo cannot make a service
//! unschedulable (Swarm accepts it and waits for ever).

use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{Fault, Labels, Node};

/// What is compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConstraintKey {
    NodeId,
    NodeHostname,
    NodeRole,
    NodeIp,
    PlatformOs,
    PlatformArch,
    NodeLabel(String),
    EngineLabel(String),
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Constraint {
    pub key: ConstraintKey,
    /// `false` for `!=`.
    pub equal: bool,
    /// As written; compared without case, whole.
    pub value: String,
}

/// The facts of a node that constraints compare with.
pub trait Matchable {
    fn id_text(&self) -> String;
    fn hostname(&self) -> &str;
    fn role_name(&self) -> &str;
    fn address(&self) -> &str;
    fn os(&self) -> &str;
    fn architecture(&self) -> &str;
    fn node_labels(&self) -> &Labels;
    fn engine_labels(&self) -> &Labels;
}

impl Matchable for Node {
    fn id_text(&self) -> String {
        self.id.to_string()
    }
    fn hostname(&self) -> &str {
        Self::hostname(self)
    }
    fn role_name(&self) -> &str {
        self.role.name()
    }
    fn address(&self) -> &str {
        &self.status.address
    }
    fn os(&self) -> &str {
        &self.description.platform.os
    }
    fn architecture(&self) -> &str {
        &self.description.platform.architecture
    }
    fn node_labels(&self) -> &Labels {
        &self.spec.labels
    }
    fn engine_labels(&self) -> &Labels {
        &self.description.engine_labels
    }
}

impl Constraint {
    /// Parses one constraint; blanks around key and value do not count.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let (key, equal, value) = split(text).ok_or_else(|| {
            fault(format!("`{text}` has no operator: constraint expected one operator from ==, !="))
        })?;
        if !is_key(key) {
            return Err(fault(format!("key '{key}' is invalid")));
        }
        if !is_value(value) {
            return Err(fault(format!("value '{value}' is invalid")));
        }
        let key = parse_key(key)?;
        if key == ConstraintKey::NodeIp && parse_net(value).is_none() {
            return Err(fault(format!("value '{value}' of node.ip must be an address or a CIDR")));
        }
        Ok(Self { key, equal, value: value.to_owned() })
    }

    /// Whether `node` satisfies it. A missing label is the empty text.
    #[must_use]
    pub fn matches(&self, node: &impl Matchable) -> bool {
        let found = match &self.key {
            ConstraintKey::NodeId => node.id_text().eq_ignore_ascii_case(&self.value),
            ConstraintKey::NodeHostname => self.same(node.hostname()),
            ConstraintKey::NodeRole => self.same(node.role_name()),
            ConstraintKey::NodeIp => self.contains(node.address()),
            ConstraintKey::PlatformOs => self.same(node.os()),
            ConstraintKey::PlatformArch => self.same_architecture(node.architecture()),
            ConstraintKey::NodeLabel(key) => self.same_label(node.node_labels(), key),
            ConstraintKey::EngineLabel(key) => self.same_label(node.engine_labels(), key),
        };
        found == self.equal
    }

    fn same(&self, text: &str) -> bool {
        text.to_lowercase() == self.value.to_lowercase()
    }

    fn same_architecture(&self, text: &str) -> bool {
        let normal =
            |name: &str| crate::Platform::normal_architecture(&name.to_lowercase()).to_owned();
        normal(text) == normal(&self.value)
    }

    fn same_label(&self, labels: &Labels, key: &str) -> bool {
        self.same(labels.get(key).map_or("", String::as_str))
    }

    fn contains(&self, address: &str) -> bool {
        match (parse_net(&self.value), address.parse::<IpAddr>()) {
            (Some(net), Ok(address)) => net.contains(&address),
            _ => false,
        }
    }
}

impl Display for Constraint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let operator = if self.equal { "==" } else { "!=" };
        match &self.key {
            ConstraintKey::NodeLabel(key) => write!(f, "node.labels.{key}")?,
            ConstraintKey::EngineLabel(key) => write!(f, "engine.labels.{key}")?,
            ConstraintKey::NodeId => f.write_str("node.id")?,
            ConstraintKey::NodeHostname => f.write_str("node.hostname")?,
            ConstraintKey::NodeRole => f.write_str("node.role")?,
            ConstraintKey::NodeIp => f.write_str("node.ip")?,
            ConstraintKey::PlatformOs => f.write_str("node.platform.os")?,
            ConstraintKey::PlatformArch => f.write_str("node.platform.arch")?,
        }
        write!(f, "{operator}{}", self.value)
    }
}

fn fault(message: String) -> Fault {
    Fault::invalid("--constraint", message)
        .hint("write for example node.labels.zone==a, node.role!=manager or node.ip==10.0.0.0/8")
}

fn split(text: &str) -> Option<(&str, bool, &str)> {
    let at = text.find("==").map(|at| (at, true));
    let not = text.find("!=").map(|at| (at, false));
    let (at, equal) = match (at, not) {
        (Some(a), Some(b)) => {
            if a.0 < b.0 {
                a
            } else {
                b
            }
        }
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => return None,
    };
    Some((text[..at].trim(), equal, text[at + 2..].trim()))
}

fn is_key(key: &str) -> bool {
    let mut bytes = key.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    first && key.len() > 1 && bytes.all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b))
}

fn is_value(value: &str) -> bool {
    !value.is_empty()
        && value.bytes().all(|b| b.is_ascii_alphanumeric() || b":-_ .*()?+[]\\^$|/@,".contains(&b))
}

fn parse_key(key: &str) -> Result<ConstraintKey, Fault> {
    let lower = key.to_ascii_lowercase();
    for (prefix, node) in [("node.labels.", true), ("engine.labels.", false)] {
        if lower.starts_with(prefix) && key.len() > prefix.len() {
            let label = key[prefix.len()..].to_owned();
            return Ok(match node {
                true => ConstraintKey::NodeLabel(label),
                false => ConstraintKey::EngineLabel(label),
            });
        }
    }
    match lower.as_str() {
        "node.id" => Ok(ConstraintKey::NodeId),
        "node.hostname" => Ok(ConstraintKey::NodeHostname),
        "node.role" => Ok(ConstraintKey::NodeRole),
        "node.ip" => Ok(ConstraintKey::NodeIp),
        "node.platform.os" => Ok(ConstraintKey::PlatformOs),
        "node.platform.arch" => Ok(ConstraintKey::PlatformArch),
        _ => Err(fault(format!(
            "key '{key}' does not exist: use node.id, node.hostname, node.role, node.ip, \
             node.platform.os, node.platform.arch, node.labels.KEY or engine.labels.KEY"
        ))),
    }
}

fn parse_net(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Meta, NodeDescription, NodeId, NodeRole, NodeSpec, NodeStatus, Platform};

    fn node() -> Node {
        Node {
            id: NodeId::MIN,
            meta: Meta::default(),
            spec: NodeSpec {
                labels: [("zone".to_owned(), "Eu-1".to_owned())].into(),
                ..NodeSpec::default()
            },
            description: NodeDescription {
                hostname: "alpha".into(),
                platform: Platform { architecture: "x86_64".into(), os: "linux".into() },
                engine_labels: [("disk".to_owned(), "ssd".to_owned())].into(),
                ..NodeDescription::default()
            },
            status: NodeStatus { address: "10.1.2.3".into(), ..NodeStatus::default() },
            role: NodeRole::Manager,
            manager: None,
            number: 1,
            certificate_expires: base::Timestamp::ZERO,
        }
    }

    #[test]
    fn satisfied_or_not() {
        for (text, want) in [
            ("node.hostname==ALPHA", true),
            ("node.hostname != alpha", false),
            ("node.role==manager", true),
            ("node.role!=worker", true),
            ("node.ip==10.0.0.0/8", true),
            ("node.ip==10.1.2.3", true),
            ("node.ip!=192.168.0.0/16", true),
            ("node.platform.arch==amd64", true),
            ("node.platform.os==Linux", true),
            ("Node.Labels.zone==eu-1", true),
            ("node.labels.ZONE==eu-1", false),
            ("node.labels.missing!=x", true),
            ("node.labels.missing==x", false),
            ("engine.labels.disk==ssd", true),
            ("node.id==0000000000000000000000001", true),
        ] {
            let constraint = Constraint::parse(text).unwrap();
            assert_eq!(constraint.matches(&node()), want, "{text}");
        }
    }

    #[test]
    fn bad_ones_are_refused_with_the_reason() {
        for (text, part) in [
            ("node.role=manager", "expected one operator from ==, !="),
            ("==x", "key '' is invalid"),
            ("node.role==", "value '' is invalid"),
            ("node.rloe==manager", "key 'node.rloe' does not exist"),
            ("node.labels.==x", "key 'node.labels.' does not exist"),
            ("node.ip==ten", "must be an address or a CIDR"),
            ("node.role==ma\u{e9}", "is invalid"),
        ] {
            let fault = Constraint::parse(text).unwrap_err();
            assert!(fault.message.contains(part), "{text}: {fault}");
            assert_eq!(fault.field, "--constraint");
        }
    }
}
