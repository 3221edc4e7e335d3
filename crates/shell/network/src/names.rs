//! Names and addresses of one daemon's own things.
//!
//! Owns: what carries the instance, and which addresses are free on this host.
//! Does not know: the kernel.
//! Invariant: two instances have no name in common.

use std::io;
use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netplan::MeshLinks;
use ports::runtime::RuntimeError;

/// Names that carry the instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names {
    /// Of links in the host's namespace; six bytes.
    pub(crate) link_prefix: String,
    /// The host's end of its link to the mesh.
    pub(crate) gateway: String,
    pub(crate) alias: String,
    pub(crate) table: String,
    /// Links on their way out, to be removed in one step.
    pub(crate) group: u32,
    hash: u64,
}

impl Names {
    pub(crate) fn of(instance: &str) -> io::Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        if instance.is_empty() || instance.len() > 32 || !instance.bytes().all(allowed) {
            return Err(io::Error::other(format!(
                "instance id {instance:?} must be 1 to 32 letters, digits and hyphens"
            )));
        }
        let hash = fnv(instance);
        let link_prefix = format!("s{}-", short(hash, 4));
        Ok(Self {
            gateway: format!("{link_prefix}gw"),
            link_prefix,
            alias: format!("shoal/{instance}"),
            table: format!("shoal-{instance}"),
            // Group 0 is everybody's.
            group: hash as u32 | 1 << 31,
            hash,
        })
    }

    /// Of a container's links.
    pub(crate) fn alias_of(&self, container: &str) -> String {
        format!("{}/{container}", self.alias)
    }

    /// A unique local subnet of this instance's.
    fn v6(&self, attempt: u16) -> Ipv6Net {
        let [a, b, c, d, e, ..] = self.hash.to_be_bytes();
        Ipv6Net::new_assert(unique_local([a, b, c, d, e], attempt), 64)
    }

    /// Where IPv6 subnets of networks of the node's own are cut of.
    pub(crate) fn local_v6(&self) -> Ipv6Net {
        let [.., a, b, c, d, e] = self.hash.to_be_bytes();
        Ipv6Net::new_assert(unique_local([a, b, c, d, e], 0), 48)
    }
}

fn unique_local([a, b, c, d, e]: [u8; 5], subnet: u16) -> Ipv6Addr {
    let word = |high, low| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(word(0xfd, a), word(b, c), word(d, e), subnet, 0, 0, 0, 0)
}

/// The subnets that are in use by us already, else the first ones that overlap with no route.
pub(crate) fn choose_links(
    names: &Names,
    own: &[IpNet],
    routes: &[IpNet],
    asked: Option<Ipv4Net>,
) -> Option<MeshLinks> {
    let overlaps = |net: &IpNet| {
        let specific = routes.iter().filter(|other| other.prefix_len() > 0);
        specific.clone().any(|other| other.contains(net) || net.contains(other))
    };
    let used = |net: &IpNet| own.iter().any(|address| net.contains(&address.addr()));
    let choose = |candidates: &[IpNet]| {
        let chosen = candidates.iter().find(|net| used(net));
        chosen.or_else(|| candidates.iter().find(|net| !overlaps(net))).copied()
    };
    let v4 = match asked {
        Some(v4) => v4,
        None => {
            let candidates: Vec<IpNet> =
                CANDIDATES.iter().filter_map(|text| text.parse().ok()).collect();
            match choose(&candidates)? {
                IpNet::V4(v4) => v4,
                IpNet::V6(_) => return None,
            }
        }
    };
    let candidates: Vec<IpNet> = (0..V6_CANDIDATES).map(|n| names.v6(n).into()).collect();
    match choose(&candidates)? {
        IpNet::V6(v6) => Some(MeshLinks { v4, v6 }),
        IpNet::V4(_) => None,
    }
}

/// A link's name, from a number that only grows.
pub(crate) fn task_link(number: u64) -> String {
    format!("{}{}", netplan::link::TASK_PREFIX, short(number, 10).trim_end_matches('0'))
}

/// In base 36, the lowest digit first.
fn short(mut number: u64, length: usize) -> String {
    let mut out = String::with_capacity(length);
    for _ in 0..length {
        out.push(char::from(b"0123456789abcdefghijklmnopqrstuvwxyz"[(number % 36) as usize]));
        number /= 36;
    }
    out
}

/// FNV-1a.
fn fnv(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

pub(crate) fn check_id(id: &str) -> Result<(), RuntimeError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if id.is_empty() || id.len() > 64 || !id.bytes().all(allowed) {
        let problem = format!("{id:?} must be 1 to 64 letters, digits, - and _");
        return Err(RuntimeError::Invalid { field: "id", problem });
    }
    Ok(())
}

/// Where node-local addresses are taken from when nothing is configured: ranges that neither
/// docker nor common routers begin with. 4,086 containers a node.
pub const CANDIDATES: &[&str] = &[
    "172.30.240.0/20",
    "172.29.240.0/20",
    "172.28.240.0/20",
    "172.27.240.0/20",
    "172.26.240.0/20",
    "172.25.240.0/20",
    "10.213.240.0/20",
    "10.214.240.0/20",
    "192.168.240.0/20",
    "198.18.240.0/20",
];

const V6_CANDIDATES: u16 = 8;

/// Whether a link's name is one that a daemon of ours gives, whichever instance it is.
#[must_use]
pub fn is_own_link(name: &str) -> bool {
    let rest = name.strip_prefix('s').and_then(|rest| rest.split_once('-'));
    rest.is_some_and(|(hash, _)| {
        hash.len() == 4
            && hash.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_without_routes_are_chosen() {
        let (first, second) = (CANDIDATES[0], CANDIDATES[1]);
        for (own, routes, chosen) in [
            (vec![], vec![], first),
            (vec![], vec!["0.0.0.0/0", "::/0", "10.0.0.0/24"], first),
            (vec![], vec!["172.30.0.0/16"], second),
            (vec![], vec!["172.30.241.7/32"], second),
            (vec!["172.29.240.1/30"], vec!["172.29.240.0/30"], second),
        ] {
            let parse = |texts: Vec<&str>| -> Vec<IpNet> {
                texts.into_iter().map(|text| text.parse().unwrap()).collect()
            };
            let (own, routes) = (parse(own), parse(routes));
            let names = Names::of("a").unwrap();
            let links = choose_links(&names, &own, &routes, None).unwrap();
            assert_eq!(links.v4, chosen.parse().unwrap(), "{routes:?}");
            assert!(links.v6.network().is_unique_local());
        }
        let all: Vec<IpNet> =
            ["0.0.0.0/1", "128.0.0.0/1"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(choose_links(&Names::of("a").unwrap(), &[], &all, None), None);
    }

    #[test]
    fn names_carry_the_instance_and_fit() {
        let (a, b) = (Names::of("node-a").unwrap(), Names::of("node-b").unwrap());
        assert_ne!(a.gateway, b.gateway);
        assert_eq!(a.link_prefix.len(), 6);
        assert_ne!(a.v6(0), b.v6(0));
        assert!(task_link(u64::MAX).len() <= 15);
        assert_ne!(task_link(36), task_link(1));
        for bad in ["", "a/b", "a b", &"x".repeat(33)] {
            assert!(Names::of(bad).is_err(), "{bad:?}");
        }
    }
}
