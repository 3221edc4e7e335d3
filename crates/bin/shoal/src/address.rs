//! The addresses of a node: where it listens, and where others reach it.
//!
//! Owns: reading `ip|interface[:port]`, and choosing an address when none is named.
//! Invariant: an address is never guessed among several.

use std::net::{IpAddr, SocketAddr};

use nix::ifaddrs::getifaddrs;
use serde::{Deserialize, Serialize};
use types::Fault;

/// Port of the managers, as Swarm's.
pub(crate) const PORT: u16 = 2377;

/// One address of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interface {
    pub name: String,
    pub address: IpAddr,
}

/// The addresses of this host, loopback included.
pub(crate) fn interfaces() -> Vec<Interface> {
    let Ok(all) = getifaddrs() else { return Vec::new() };
    all.filter_map(|entry| {
        let storage = entry.address?;
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let address = v4.or_else(|| storage.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))?;
        Some(Interface { name: entry.interface_name, address })
    })
    .collect()
}

/// Reads `--listen-addr`; empty means `0.0.0.0:2377`.
fn listen(text: &str, interfaces: &[Interface]) -> Result<SocketAddr, Fault> {
    if text.is_empty() {
        return Ok(SocketAddr::from(([0, 0, 0, 0], PORT)));
    }
    parse("--listen-addr", text, PORT, interfaces)
}

/// Reads `--advertise-addr`; empty means the only address this host has.
fn advertise(
    text: &str,
    listen: SocketAddr,
    interfaces: &[Interface],
) -> Result<SocketAddr, Fault> {
    let address = match text.is_empty() {
        false => parse("--advertise-addr", text, listen.port(), interfaces)?,
        true if !listen.ip().is_unspecified() => listen,
        true => SocketAddr::new(only_address(interfaces)?, listen.port()),
    };
    if address.ip().is_unspecified() {
        let message = "must specify a listening address because the address to advertise is not \
                       recognized as a system address, and a system's IP address to use could not \
                       be uniquely identified";
        return Err(Fault::invalid("--advertise-addr", message));
    }
    Ok(address)
}

/// Where packets of networks come from: one address, or that which a link or the host has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PathAddress {
    /// An address, a link, or empty for the only address of the host.
    named: String,
    /// The address at the time when it was named.
    address: IpAddr,
}

impl PathAddress {
    /// The address as the host is now. One that the host still has is kept, whatever came to it;
    /// while none can be told, it is the one before.
    pub(crate) fn now(&self, interfaces: &[Interface], before: Option<IpAddr>) -> IpAddr {
        let before = before.unwrap_or(self.address);
        if let Ok(address) = self.named.parse() {
            return address;
        }
        if interfaces.iter().any(|interface| interface.address == before) {
            return before;
        }
        let found = match self.named.is_empty() {
            true => only_address(interfaces),
            false => parse("", &self.named, 0, interfaces).map(|address| address.ip()),
        };
        found.unwrap_or(before)
    }
}

/// Reads `--data-path-addr`: an address or an interface, without a port. Empty means what others
/// reach this node by.
fn data_path(
    text: &str,
    advertised: (&str, SocketAddr),
    interfaces: &[Interface],
) -> Result<PathAddress, Fault> {
    let (text, address) = match text.is_empty() {
        true => (advertised.0, advertised.1.ip()),
        false => {
            let address = parse("--data-path-addr", text, 0, interfaces)?;
            if address.port() != 0 {
                let message = "must be an address or an interface, no port";
                return Err(Fault::invalid("--data-path-addr", message));
            }
            (text, address.ip())
        }
    };
    let named = match literal(text, 0) {
        Some(_) => address.to_string(),
        None => text.split(':').next().unwrap_or_default().to_owned(),
    };
    Ok(PathAddress { named, address })
}

/// What a user says of a node's addresses.
pub(crate) struct Addresses {
    pub(crate) listen: SocketAddr,
    pub(crate) advertise: SocketAddr,
    pub(crate) path: PathAddress,
}

/// Reads all three, on this host.
pub(crate) fn read(listen: &str, advertise: &str, data_path: &str) -> Result<Addresses, Fault> {
    let interfaces = interfaces();
    let listen = self::listen(listen, &interfaces)?;
    let text = match advertise.is_empty() && !listen.ip().is_unspecified() {
        true => listen.to_string(),
        false => advertise.to_owned(),
    };
    let advertise = self::advertise(advertise, listen, &interfaces)?;
    let path = self::data_path(data_path, (&text, advertise), &interfaces)?;
    Ok(Addresses { listen, advertise, path })
}

fn parse(
    field: &str,
    text: &str,
    port: u16,
    interfaces: &[Interface],
) -> Result<SocketAddr, Fault> {
    if let Some(address) = literal(text, port) {
        return Ok(address);
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, number)) => (name, number.parse().map_err(|_| bad(field, text))?),
        None => (text, port),
    };
    let candidates: Vec<&Interface> = interfaces
        .iter()
        .filter(|interface| interface.name == name && !is_link_local(interface.address))
        .collect();
    let v4: Vec<&&Interface> = candidates.iter().filter(|i| i.address.is_ipv4()).collect();
    match (v4.as_slice(), candidates.as_slice()) {
        ([one], _) => Ok(SocketAddr::new(one.address, port)),
        ([], [one]) => Ok(SocketAddr::new(one.address, port)),
        ([], []) => Err(bad(field, text)),
        ([first, second, ..], _) => Err(ambiguous(field, first, second)),
        ([], [first, second, ..]) => Err(ambiguous(field, first, second)),
    }
}

/// An address, with or without a port; `None`: it must be the name of a link.
fn literal(text: &str, port: u16) -> Option<SocketAddr> {
    let ip = || text.trim_matches(['[', ']']).parse().map(|ip| SocketAddr::new(ip, port));
    text.parse().or_else(|_| ip()).ok()
}

fn bad(field: &str, text: &str) -> Fault {
    Fault::invalid(field, format!("`{text}` is neither an address nor an interface of this host"))
        .hint("write for example 192.168.1.10, 192.168.1.10:2377 or eth0")
}

fn only_address(interfaces: &[Interface]) -> Result<IpAddr, Fault> {
    let usable = |interface: &&Interface| {
        !interface.address.is_loopback()
            && !is_link_local(interface.address)
            && !network::is_own_link(&interface.name)
            && !interface.name.starts_with("docker")
    };
    let all: Vec<&Interface> = interfaces.iter().filter(usable).collect();
    let v4: Vec<&Interface> = all.iter().copied().filter(|i| i.address.is_ipv4()).collect();
    let candidates = if v4.is_empty() { all } else { v4 };
    match candidates.as_slice() {
        [] => Err(Fault::invalid("--advertise-addr", "this host has no address to advertise")
            .hint("name one with --advertise-addr")),
        [one] => Ok(one.address),
        [first, second, ..] => Err(ambiguous("--advertise-addr", first, second)),
    }
}

fn ambiguous(field: &str, first: &Interface, second: &Interface) -> Fault {
    let place = match first.name == second.name {
        true => format!("on interface {} ({} and {})", first.name, first.address, second.address),
        false => format!(
            "on different interfaces ({} on {} and {} on {})",
            first.address, first.name, second.address, second.name
        ),
    };
    let message = format!(
        "could not choose an IP address to advertise since this system has multiple addresses \
         {place} - specify one with {field}"
    );
    Fault::invalid(field, message)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.segments()[0] & 0xffc0 == 0xfe80,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(list: &[(&str, &str)]) -> Vec<Interface> {
        let one = |(name, address): &(&str, &str)| Interface {
            name: (*name).to_owned(),
            address: address.parse().unwrap(),
        };
        list.iter().map(one).collect()
    }

    #[test]
    fn addresses_and_interfaces_are_read() {
        let host = host(&[("lo", "127.0.0.1"), ("eth0", "10.0.0.5"), ("eth0", "fe80::1")]);
        let any = listen("", &host).unwrap();
        assert_eq!(any.to_string(), "0.0.0.0:2377");
        assert_eq!(listen("eth0:99", &host).unwrap().to_string(), "10.0.0.5:99");
        assert_eq!(advertise("", any, &host).unwrap().to_string(), "10.0.0.5:2377");
        assert_eq!(advertise("10.9.9.9", any, &host).unwrap().to_string(), "10.9.9.9:2377");
        assert!(listen("eth7", &host).unwrap_err().message.contains("eth7"));
        assert!(advertise("0.0.0.0", any, &host).is_err());
    }

    #[test]
    fn what_was_not_named_as_an_address_follows_the_host() {
        let before = host(&[("lo", "127.0.0.1"), ("eth0", "10.0.0.5"), ("eth1", "10.1.0.5")]);
        let after = host(&[("lo", "127.0.0.1"), ("eth0", "10.0.0.6"), ("eth1", "10.1.0.6")]);
        let away = host(&[("lo", "127.0.0.1")]);
        let own: SocketAddr = "10.0.0.5:2377".parse().unwrap();
        for (text, advertised, followed) in [
            ("", "", "10.0.0.5"),
            ("", "eth0:2377", "10.0.0.6"),
            ("", "10.0.0.5:2377", "10.0.0.5"),
            ("", "10.0.0.5", "10.0.0.5"),
            ("eth1", "", "10.1.0.6"),
            ("10.1.0.5", "", "10.1.0.5"),
        ] {
            let path = data_path(text, (advertised, own), &before).unwrap();
            let first = path.now(&before, None);
            assert_eq!(path.now(&away, Some(first)), first, "{text} {advertised}");
            let next = path.now(&after, Some(first));
            assert_eq!(next.to_string(), followed, "{text} {advertised}");
        }
        let path = data_path("", ("", own), &before).unwrap();
        let moved = host(&[("eth0", "10.0.0.7")]);
        assert_eq!(path.now(&moved, None).to_string(), "10.0.0.7");
        // A further address is none of its business.
        let both = host(&[("eth0", "10.0.0.5"), ("eth0", "10.0.0.7")]);
        assert_eq!(path.now(&both, None).to_string(), "10.0.0.5");
        assert!(data_path("eth1:80", ("", own), &before).is_err());
    }

    #[test]
    fn several_addresses_are_not_guessed_among() {
        let host = host(&[("eth0", "10.0.0.5"), ("eth1", "10.1.0.5")]);
        let fault = advertise("", listen("", &host).unwrap(), &host).unwrap_err();
        assert!(fault.message.contains("10.0.0.5 on eth0 and 10.1.0.5 on eth1"), "{fault}");
    }
}
