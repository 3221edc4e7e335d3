//! What a container's `resolv.conf` says, and whom its resolver asks.
//!
//! Owns: reading the host's file, and how `--dns`, `--dns-search` and `--dns-option` change it.
//! Does not know: files; the text is an argument.
//! Invariant: the container's only server is ours.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use nix::net::if_::if_nametoindex;
use types::DnsConfig;

use crate::{Forward, Origin, Upstream};

/// Where a container's questions go.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Where the resolver itself listens, unless somebody in the container does. Above those that the
/// kernel gives out, and nobody's (RFC 6335, section 6).
pub const RESOLVER_PORT: u16 = 61_053;

/// The text of a container's `resolv.conf`, given the host's.
#[must_use]
pub fn resolv_conf(host: &str, dns: &DnsConfig) -> String {
    let mut text = format!("nameserver {RESOLVER}\n");
    let search: Vec<&str> = if dns.search.is_empty() {
        directives(host)
            .filter(|(word, _)| *word == "search")
            .last()
            .map_or(vec![], |(_, rest)| rest)
    } else {
        dns.search.iter().map(String::as_str).collect()
    };
    // docker's word for none.
    let search: Vec<&str> = search.into_iter().filter(|domain| *domain != ".").collect();
    if !search.is_empty() {
        text.push_str(&format!("search {}\n", search.join(" ")));
    }
    let mut options: Vec<&str> = dns.options.iter().map(String::as_str).collect();
    if !options.iter().any(|option| option.starts_with("ndots:")) {
        options.push("ndots:0");
    }
    text.push_str(&format!("options {}\n", options.join(" ")));
    text
}

impl Forward {
    /// The servers of `--dns`, or else those of the host's `resolv.conf`.
    #[must_use]
    pub fn choose(host: &str, dns: &DnsConfig) -> Self {
        let asked = dns.nameservers.iter().filter_map(|text| server(text));
        let mut upstreams: Vec<Upstream> =
            asked.map(|address| Upstream { address, from: Origin::Container }).collect();
        if upstreams.is_empty() {
            let words = directives(host).filter(|(word, _)| *word == "nameserver");
            let servers = words.filter_map(|(_, rest)| server(rest.first()?));
            upstreams.extend(servers.map(|address| Upstream { address, from: origin(address) }));
        }
        upstreams.truncate(SERVERS_MAX);
        Self::Servers(upstreams)
    }
}

/// A server on the host's loopback is not reached from a container.
fn origin(address: SocketAddr) -> Origin {
    let is_near = match address.ip() {
        IpAddr::V4(v4) => v4.is_loopback(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    };
    if is_near { Origin::Host } else { Origin::Container }
}

/// Words of each line, comments left out.
fn directives(text: &str) -> impl Iterator<Item = (&str, Vec<&str>)> {
    text.lines().filter_map(|line| {
        let mut words = line.split(['#', ';']).next().unwrap_or_default().split_whitespace();
        Some((words.next()?, words.collect()))
    })
}

/// An address, with its zone if it is a link-local one.
fn server(text: &str) -> Option<SocketAddr> {
    if let Some((address, zone)) = text.split_once('%') {
        let address: Ipv6Addr = address.parse().ok()?;
        let index = zone.parse().ok().or_else(|| if_nametoindex(zone).ok())?;
        return Some(SocketAddrV6::new(address, DNS_PORT, 0, index).into());
    }
    Some(SocketAddr::new(text.parse().ok()?, DNS_PORT))
}

const DNS_PORT: u16 = 53;
/// As the C library's.
const SERVERS_MAX: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# a comment\nnameserver 127.0.0.53 ; stub\nnameserver 192.0.2.7\n\
                        search old.example\nsearch a.example b.example\noptions edns0 ndots:3\n";

    fn dns(nameservers: &[&str], search: &[&str], options: &[&str]) -> DnsConfig {
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        DnsConfig {
            nameservers: texts(nameservers),
            search: texts(search),
            options: texts(options),
        }
    }

    #[test]
    fn the_hosts_search_list_is_kept_unless_another_is_asked_for() {
        for (dns, text) in [
            (dns(&[], &[], &[]), "search a.example b.example\noptions ndots:0\n"),
            (dns(&["192.0.2.1"], &["c.example"], &[]), "search c.example\noptions ndots:0\n"),
            (dns(&[], &["."], &["timeout:1"]), "options timeout:1 ndots:0\n"),
            (dns(&[], &["."], &["ndots:2"]), "options ndots:2\n"),
        ] {
            assert_eq!(resolv_conf(HOST, &dns), format!("nameserver 127.0.0.11\n{text}"));
        }
        assert_eq!(
            resolv_conf("", &dns(&[], &[], &[])),
            "nameserver 127.0.0.11\noptions ndots:0\n"
        );
    }

    #[test]
    fn a_server_on_the_hosts_loopback_is_asked_from_the_host() {
        let upstream = |text: &str, from| Upstream { address: text.parse().unwrap(), from };
        assert_eq!(
            Forward::choose(HOST, &dns(&[], &[], &[])),
            Forward::Servers(vec![
                upstream("127.0.0.53:53", Origin::Host),
                upstream("192.0.2.7:53", Origin::Container),
            ])
        );
        assert_eq!(
            Forward::choose(HOST, &dns(&["2001:db8::1", "127.0.0.1", "nonsense"], &[], &[])),
            Forward::Servers(vec![
                upstream("[2001:db8::1]:53", Origin::Container),
                upstream("127.0.0.1:53", Origin::Container),
            ])
        );
        assert_eq!(Forward::choose("", &dns(&[], &[], &[])), Forward::Servers(vec![]));
    }
}
