//! The checks of networks, and of what a service asks of them.
//!
//! Owns: every refusal of a network spec, and of the networks, ports and names of a service spec.
//! Does not know: other objects: whether a subnet or port is taken is the store's to say.
//! Invariant: what gets past it can be given out, unless somebody else has it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{check_labels, check_list, check_name, check_text};
use crate::limits::{
    ADDRESS_POOLS_MAX, ENCRYPTED_OVERHEAD, FIXED_ADDRESSES_MAX, MTU_MAX, MTU_MIN, MTU_V6_MIN,
    NETWORKS_PER_SERVICE_MAX, PORTS_PER_SERVICE_MAX, SUBNETS_PER_NETWORK_MAX, VNI_MAX,
};
use crate::{
    DnsConfig, EndpointMode, ErrorCode, Family, Fault, IpamPool, NetworkAttachment, NetworkDriver,
    NetworkId, NetworkSpec, PortSpec, PublishMode, ServiceMode, ServiceSpec, Subnet, nets_overlap,
};

/// Options of a network that this version knows; docker's words.
const OPTIONS: [&str; 5] = [
    NetworkSpec::MTU,
    NetworkSpec::VNI,
    NetworkSpec::ENCRYPTED,
    NetworkSpec::OVERLAP,
    NetworkSpec::DIRECT,
];
/// The smallest identifier that a user may choose, as docker's.
const CHOSEN_VNI_MIN: u32 = 256;
/// Prefix lengths that a subnet may have: room for two tasks at least.
const PREFIX_V4: std::ops::RangeInclusive<u8> = 8..=29;
const PREFIX_V6: std::ops::RangeInclusive<u8> = 32..=120;
/// Bytes of an interface's name (IFNAMSIZ, without its end).
const INTERFACE_BYTES_MAX: usize = 15;
/// Characters of a domain name (RFC 1035, section 2.3.4).
const DOMAIN_CHARS_MAX: usize = 253;

/// Refuses a network that cannot be made, whatever else there is.
pub fn check_network_spec(spec: &NetworkSpec) -> Result<(), Fault> {
    check_name("name", &spec.name)?;
    if NetworkId::from_predefined_name(&spec.name).is_some() {
        let message = format!("network with name {} already exists: every node has it", spec.name);
        return Err(Fault { code: ErrorCode::Conflict, ..Fault::invalid("name", message) });
    }
    check_labels("--label", &spec.labels)?;
    if spec.config_only {
        return Err(operator_fields("--config-only"));
    }
    if spec.driver.is_of_nodes() {
        return check_of_nodes(spec);
    }
    if spec.driver != NetworkDriver::Overlay {
        let message = format!("a network of the cluster cannot have driver {}", spec.driver.name());
        return Err(Fault::invalid("--driver", message).hint("use overlay, or scope local"));
    }
    if !spec.config_from.is_empty() {
        let message = "an overlay is made of nothing that a single node has";
        return Err(Fault::invalid("--config-from", message)
            .hint("name the driver: --driver macvlan, ipvlan or bridge"));
    }
    if !spec.ipv4 && !spec.ipv6 {
        return Err(Fault::invalid("--ipv4", "IPv4 or IPv6 must be enabled"));
    }
    if spec.ingress && spec.attachable {
        return Err(Fault::invalid("--ingress", "ingress network cannot be attachable"));
    }
    if spec.ingress && spec.internal {
        return Err(Fault::invalid("--ingress", "ingress network cannot be internal"));
    }
    if spec.ingress && !spec.ipv4 {
        return Err(Fault::invalid("--ipv4", "ingress network cannot be without IPv4"));
    }
    check_options(spec)?;
    if spec.ipam.iter().any(|pool| !pool.aux.is_empty()) {
        let message = "networks of the cluster have none: their addresses are given out by it";
        return Err(Fault::invalid("--aux-address", message)
            .hint("use --ip-range to keep a part of the subnet for others"));
    }
    check_pools(spec)
}

/// A network of the cluster that each node makes for itself, of what it has for that.
fn check_of_nodes(spec: &NetworkSpec) -> Result<(), Fault> {
    let driver = spec.driver.name();
    if spec.ingress {
        let message = format!("the network of the routing mesh is an overlay, not a {driver}");
        return Err(Fault::invalid("--ingress", message));
    }
    if !spec.config_from.is_empty() {
        return check_from_config(spec);
    }
    let hint = "make one on each node with --config-only, and name it here with --config-from";
    if spec.driver != NetworkDriver::Bridge {
        let message = format!("a {driver} of the cluster is made of a configuration of each node");
        return Err(Fault::invalid("--config-from", message).hint(hint));
    }
    if !spec.ipam.is_empty() || spec.ipv6 || !spec.ipv4 {
        let field = if spec.ipam.is_empty() { "--ipv6" } else { "--subnet" };
        let message = "each node has addresses of its own on such a network";
        return Err(Fault::invalid(field, message).hint(hint));
    }
    super::local_network::check_options(spec)
}

/// Who refers to a configuration says nothing of what stands in it.
pub(super) fn check_from_config(spec: &NetworkSpec) -> Result<(), Fault> {
    check_name("--config-from", &spec.config_from)?;
    let refuse = |field: &str, what: &str| {
        let message =
            format!("{what} are not supported if the network depends on a configuration network");
        Err(Fault::invalid(field, message).hint("say it in that one"))
    };
    if !spec.options.is_empty() {
        return refuse("--opt", "network driver options");
    }
    if !spec.ipam.is_empty() {
        return refuse("--subnet", "user specified configurations");
    }
    if spec.ipv6 || !spec.ipv4 {
        return refuse("--ipv6", "user specified configurations");
    }
    Ok(())
}

/// Docker's words for what a configuration cannot say.
pub(super) fn operator_fields(field: &str) -> Fault {
    let message = "configuration network can only contain network specific fields. Network \
                   operator fields like [ ingress | internal | attachable | scope ] are not \
                   supported.";
    Fault::invalid(field, message)
}

/// Refuses pools that no subnet can be cut of. No pool: docker's, `10.0.0.0/8`; no length: 24.
pub fn check_address_pools(pools: &[String], mask: u32) -> Result<(), Fault> {
    let mask = if mask == 0 { POOL_MASK } else { mask };
    let length = "--default-addr-pool-mask-length";
    if !PREFIX_V4.contains(&u8::try_from(mask).unwrap_or(u8::MAX)) {
        let (min, max) = (PREFIX_V4.start(), PREFIX_V4.end());
        return Err(Fault::invalid(length, format!("must be between {min} and {max}")));
    }
    if pools.len() > ADDRESS_POOLS_MAX {
        let message = format!("at most {ADDRESS_POOLS_MAX} pools are allowed");
        return Err(Fault::invalid("--default-addr-pool", message));
    }
    let mut seen: Vec<IpNet> = Vec::new();
    for text in pools {
        let bad = |why: String| Err(Fault::invalid("--default-addr-pool", format!("{text} {why}")));
        let Ok(IpNet::V4(net)) = text.parse() else {
            return bad("is not an IPv4 network such as 10.0.0.0/8".into());
        };
        if net != net.trunc() {
            return bad(format!("has bits behind its prefix: it should be {}", net.trunc()));
        }
        if u32::from(net.prefix_len()) > mask {
            return bad(format!("is smaller than one subnet of it (/{mask})"));
        }
        if let Some(other) = seen.iter().find(|other| nets_overlap(**other, net.into())) {
            return bad(format!("overlaps with {other}"));
        }
        seen.push(net.into());
    }
    Ok(())
}

/// Docker's pool, when nobody names another.
pub const POOL_DEFAULT: &str = "10.0.0.0/8";
/// Length of the subnets that are cut of the pools when nobody says another.
pub const POOL_MASK: u32 = 24;

fn check_options(spec: &NetworkSpec) -> Result<(), Fault> {
    for (key, value) in &spec.options {
        let bad = |message: String| Err(Fault::invalid("--opt", message));
        match key.as_str() {
            NetworkSpec::MTU => check_mtu(spec, value)?,
            NetworkSpec::VNI => {
                if !spec.vni().is_some_and(|vni| (CHOSEN_VNI_MIN..=VNI_MAX).contains(&vni)) {
                    return bad(format!(
                        "{key}={value}: must be one number between {CHOSEN_VNI_MIN} and {VNI_MAX}"
                    ));
                }
            }
            NetworkSpec::OVERLAP if spec.ingress => {
                return bad(format!("{key}: the ingress network cannot overlap with others"));
            }
            NetworkSpec::ENCRYPTED | NetworkSpec::OVERLAP | NetworkSpec::DIRECT => {
                if !["", "true", "1", "false", "0"].contains(&value.as_str()) {
                    return bad(format!(
                        "{key}={value}: must be true or false, or without a value"
                    ));
                }
            }
            _ => {
                let known = OPTIONS.join(", ");
                return bad(format!("unknown option {key}: overlay networks have {known}"));
            }
        }
    }
    Ok(())
}

pub(super) fn check_mtu(spec: &NetworkSpec, value: &str) -> Result<(), Fault> {
    let min = if spec.wants(Family::V6) { MTU_V6_MIN } else { MTU_MIN };
    let max = if spec.is_encrypted() { MTU_MAX - ENCRYPTED_OVERHEAD } else { MTU_MAX };
    if value.parse().is_ok_and(|mtu: u32| (min..=max).contains(&mtu)) {
        return Ok(());
    }
    let key = NetworkSpec::MTU;
    let message = format!("{key}={value}: must be between {min} and {max} bytes");
    Err(Fault::invalid("--opt", message))
}

pub(super) fn check_pools(spec: &NetworkSpec) -> Result<(), Fault> {
    if spec.ipam.len() > SUBNETS_PER_NETWORK_MAX {
        let message = format!("at most {SUBNETS_PER_NETWORK_MAX} subnets are allowed");
        return Err(Fault::invalid("--subnet", message));
    }
    let mut seen: Vec<IpNet> = Vec::new();
    for pool in &spec.ipam {
        let net = check_pool(spec, pool)?;
        if let Some(other) = seen.iter().find(|other| nets_overlap(**other, net)) {
            let message = format!("subnet {net} overlaps with subnet {other} of the same network");
            return Err(Fault::invalid("--subnet", message));
        }
        seen.push(net);
    }
    Ok(())
}

fn check_pool(spec: &NetworkSpec, pool: &IpamPool) -> Result<IpNet, Fault> {
    let Some(net) = pool.subnet else {
        let message = "every ip-range or gateway must have a corresponding subnet";
        return Err(Fault::invalid("--subnet", message));
    };
    let bad = |message: String| Err(Fault::invalid("--subnet", message));
    if net != net.trunc() {
        return bad(format!("invalid subnet {net}: it should be {}", net.trunc()));
    }
    let family = Family::of_net(net);
    if !spec.wants(family) {
        let flag = if family == Family::V6 { "--ipv6" } else { "--ipv4" };
        return bad(format!("subnet {net} needs {}: add {flag}", family.name()));
    }
    let lengths = if family == Family::V6 { PREFIX_V6 } else { PREFIX_V4 };
    if !lengths.contains(&net.prefix_len()) {
        let (min, max) = (lengths.start(), lengths.end());
        return bad(format!("subnet {net} must have a prefix length between /{min} and /{max}"));
    }
    if SPECIAL.iter().filter_map(|text| text.parse().ok()).any(|other| nets_overlap(other, net)) {
        return bad(format!(
            "subnet {net} is not for ordinary addresses: use for example 10.1.0.0/24"
        ));
    }
    if let Some(range) = pool.range
        && (range != range.trunc() || !net.contains(&range))
    {
        let message = format!("ip-range {range} must be a part of subnet {net}");
        return Err(Fault::invalid("--ip-range", message));
    }
    if let Some(gateway) = pool.gateway {
        // With another gateway the address counts as any other.
        let other = if gateway == net.network() { None } else { Some(net.network()) };
        if !Subnet::new(net, None, other).may_hold(gateway) {
            let message = format!("gateway {gateway} must be an address of subnet {net}");
            return Err(Fault::invalid("--gateway", message));
        }
    }
    Ok(net)
}

/// This host, loopback, link-local, multicast: RFC 6890.
const SPECIAL: [&str; 8] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/16",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
];

/// The networks and ports of a service.
pub(super) fn check_service(spec: &ServiceSpec) -> Result<(), Fault> {
    check_ports(spec)?;
    let networks = &spec.task.networks;
    if networks.len() > NETWORKS_PER_SERVICE_MAX {
        let message = format!("at most {NETWORKS_PER_SERVICE_MAX} networks are allowed");
        return Err(Fault::invalid("--network", message));
    }
    let mut seen = BTreeSet::new();
    for network in networks {
        check_attachment(spec, network)?;
        if !seen.insert(network.target.as_str()) {
            let message = format!("service is already attached to network {}", network.target);
            return Err(Fault::invalid("--network", message));
        }
        let Some(own) = predefined(&network.target) else { continue };
        let name = if own == NetworkId::HOST { "host" } else { "none" };
        if own != NetworkId::BRIDGE && networks.len() > 1 {
            let message = format!("network {name} cannot be combined with other networks");
            return Err(Fault::invalid("--network", message));
        }
        if own != NetworkId::BRIDGE && !spec.ports().is_empty() {
            let message = format!("a port cannot be published by a service on network {name}");
            return Err(Fault::invalid("--publish", message));
        }
    }
    Ok(())
}

fn predefined(target: &str) -> Option<NetworkId> {
    let by_id = || target.parse::<NetworkId>().ok();
    NetworkId::from_predefined_name(target).or_else(by_id).filter(|id| id.is_predefined())
}

fn check_attachment(spec: &ServiceSpec, network: &NetworkAttachment) -> Result<(), Fault> {
    let bad = |message: String| Err(Fault::invalid("--network", message));
    let name = &network.target;
    if name.is_empty() || name.len() > DOMAIN_CHARS_MAX {
        return bad("name a network: --network NAME or --network name=NAME,alias=OTHER".into());
    }
    check_aliases("--network", &network.aliases)?;
    if let Some(key) = network.driver_options.keys().next() {
        return bad(format!(
            "unknown driver option {key}: overlay networks have none for services"
        ));
    }
    let fixed = || network.addresses.iter().chain(&network.vips);
    if fixed().next().is_none() {
        return Ok(());
    }
    if predefined(name).is_some() {
        return bad(format!("network {name} has no fixed addresses"));
    }
    if !network.addresses.is_empty() && !matches!(spec.mode, ServiceMode::Replicated(_)) {
        return bad("fixed addresses of tasks need replicated mode: each belongs to a slot".into());
    }
    if network.addresses.len() > FIXED_ADDRESSES_MAX {
        return bad(format!("at most {FIXED_ADDRESSES_MAX} fixed addresses are allowed"));
    }
    let mut seen = BTreeSet::new();
    if let Some(twice) = fixed().find(|address| !seen.insert(**address)) {
        return bad(format!("address {twice} is named twice"));
    }
    for family in Family::ALL {
        if network.vips.iter().filter(|at| Family::of(**at) == family).count() > 1 {
            return bad(format!("at most one {} virtual address is allowed", family.name()));
        }
    }
    if !network.vips.is_empty() && spec.endpoint_mode() == EndpointMode::Dnsrr {
        return bad("a virtual address cannot be had in endpoint mode dnsrr".into());
    }
    Ok(())
}

/// Further names of a container or a service on one network.
pub fn check_aliases(flag: &str, aliases: &[String]) -> Result<(), Fault> {
    check_list(flag, aliases)?;
    match aliases.iter().find(|alias| !is_domain(alias)) {
        Some(alias) => Err(Fault::invalid(flag, format!("alias `{alias}` must be a DNS name"))),
        None => Ok(()),
    }
}

fn check_ports(spec: &ServiceSpec) -> Result<(), Fault> {
    let ports = spec.ports();
    if ports.len() > PORTS_PER_SERVICE_MAX {
        let message = format!("at most {PORTS_PER_SERVICE_MAX} ports are allowed");
        return Err(Fault::invalid("--publish", message));
    }
    if spec.endpoint_mode() == EndpointMode::Dnsrr && spec.needs_ingress() {
        let message =
            "EndpointSpec: port published with ingress mode can't be used with dnsrr mode";
        return Err(Fault::invalid("--publish", message)
            .hint("publish it with mode=host, or use --endpoint-mode vip"));
    }
    let (mut names, mut taken) = (BTreeSet::new(), BTreeSet::new());
    for port in ports {
        check_port(port)?;
        if !port.name.is_empty() && !names.insert((port.protocol, port.name.to_lowercase())) {
            let message = format!("port name {} occurs twice", port.name);
            return Err(Fault::invalid("--publish", message));
        }
    }
    for port in ports.iter().filter(|port| port.published != 0) {
        // One port of the mesh has one owner, whatever address it is bound to.
        let host = if port.mode == PublishMode::Host { port.host.as_str() } else { "" };
        let key = (port.protocol, port.published);
        let others = [PublishMode::Ingress, PublishMode::Host];
        let clash = taken.contains(&(key, port.mode, host))
            || others.iter().any(|mode| *mode != port.mode && published(&taken, key, *mode))
            || (port.mode == PublishMode::Host && taken.contains(&(key, port.mode, "")))
            || (host.is_empty() && published(&taken, key, port.mode));
        if clash {
            let message = "EndpointSpec: duplicate published ports provided";
            let hint = format!("port {}/{} is there twice", port.published, port.protocol.name());
            return Err(Fault::invalid("--publish", message).hint(hint));
        }
        taken.insert((key, port.mode, host));
    }
    Ok(())
}

type Published<'a> = BTreeSet<((crate::PortProtocol, u16), PublishMode, &'a str)>;

fn published(taken: &Published<'_>, key: (crate::PortProtocol, u16), mode: PublishMode) -> bool {
    taken.range((key, mode, "")..).next().is_some_and(|found| (found.0, found.1) == (key, mode))
}

fn check_port(port: &PortSpec) -> Result<(), Fault> {
    if port.target == 0 {
        return Err(Fault::invalid("--publish", "a target port between 1 and 65535 is needed"));
    }
    if !port.name.is_empty() && !is_label(&port.name) {
        let message = format!("port name `{}` must be a DNS label", port.name);
        return Err(Fault::invalid("--publish", message));
    }
    let host = port.host.as_str();
    if !is_interface(host) && host.parse::<IpAddr>().is_err() {
        let message = format!("`{host}` is neither an address nor the name of an interface");
        return Err(Fault::invalid("--publish", message));
    }
    Ok(())
}

/// Nothing counts as one.
pub(super) fn is_interface(name: &str) -> bool {
    name.len() <= INTERFACE_BYTES_MAX
        && name.bytes().all(|b| b.is_ascii_graphic() && b != b'/' && b != b':')
        && !matches!(name, "." | "..")
}

pub(super) fn check_dns(dns: &DnsConfig) -> Result<(), Fault> {
    check_list("--dns", &dns.nameservers)?;
    check_list("--dns-search", &dns.search)?;
    check_list("--dns-option", &dns.options)?;
    if let Some(bad) = dns.nameservers.iter().find(|text| text.parse::<IpAddr>().is_err()) {
        return Err(Fault::invalid("--dns", format!("`{bad}` is not an address")));
    }
    // A lone dot is docker's way to say: no search domain at all.
    if let Some(bad) = dns.search.iter().find(|name| *name != "." && !is_domain(name)) {
        return Err(Fault::invalid("--dns-search", format!("`{bad}` is not a domain name")));
    }
    let word = |text: &String| !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    match dns.options.iter().find(|text| !word(text)) {
        Some(bad) => Err(Fault::invalid("--dns-option", format!("`{bad}` must be one word"))),
        None => Ok(()),
    }
}

/// Lines `name:address`, where the address may be `host-gateway`.
pub(super) fn check_hosts(hosts: &[String]) -> Result<(), Fault> {
    check_list("--host", hosts)?;
    for line in hosts {
        check_text("--host", line)?;
        let good = line.split_once(':').is_some_and(|(name, address)| {
            let address =
                address.strip_prefix('[').map_or(address, |rest| rest.trim_end_matches(']'));
            is_domain(name) && (address == "host-gateway" || address.parse::<IpAddr>().is_ok())
        });
        if !good {
            let message = format!("`{line}` must be name:address or name:host-gateway");
            return Err(Fault::invalid("--host", message));
        }
    }
    Ok(())
}

fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let edge = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_alphanumeric() || *b == b'_');
    bytes.len() <= 63
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b))
}

/// Labels joined by dots; one at the end may stand.
fn is_domain(text: &str) -> bool {
    let name = text.strip_suffix('.').unwrap_or(text);
    name.len() <= DOMAIN_CHARS_MAX && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(options: &[(&str, &str)]) -> NetworkSpec {
        let options = options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        NetworkSpec {
            name: "back".into(),
            ipv4: true,
            options: options.collect(),
            ..NetworkSpec::default()
        }
    }

    #[test]
    fn a_network_is_encrypted_when_its_option_says_so_and_never_by_a_slip() {
        for (value, encrypted) in
            [("", true), ("true", true), ("1", true), ("false", false), ("0", false)]
        {
            let mut spec = network(&[("encrypted", value)]);
            assert_eq!(check_network_spec(&spec), Ok(()), "{value}");
            assert_eq!(spec.is_encrypted(), encrypted, "{value}");
            // That of the mesh may be one, too.
            spec.ingress = true;
            assert_eq!(check_network_spec(&spec), Ok(()), "{value}");
        }
        for value in ["yes", "True", "2", " "] {
            let fault = check_network_spec(&network(&[("encrypted", value)])).unwrap_err();
            assert_eq!(fault.field, "--opt");
            assert!(fault.message.contains("must be true or false"), "{}", fault.message);
        }
        let spec = NetworkSpec { driver: NetworkDriver::Bridge, ..network(&[("encrypted", "")]) };
        assert_eq!(check_network_spec(&spec).unwrap_err().field, "--opt");
        let fault = super::super::check_local_network_spec(&spec).unwrap_err();
        assert!(fault.message.starts_with("unknown option encrypted"), "{}", fault.message);
    }

    #[test]
    fn a_network_may_overlap_when_its_option_says_so() {
        for (value, may) in [("", true), ("true", true), ("0", false), ("false", false)] {
            let spec = network(&[("overlap", value)]);
            check_network_spec(&spec).unwrap();
            assert_eq!(spec.may_overlap(), may, "{value}");
        }
        assert!(!network(&[]).may_overlap());
        let fault = check_network_spec(&network(&[("overlap", "maybe")])).unwrap_err();
        assert_eq!(fault.field, "--opt");
        let ingress = NetworkSpec { ingress: true, ..network(&[("overlap", "")]) };
        let fault = check_network_spec(&ingress).unwrap_err();
        assert!(fault.message.contains("the ingress network"), "{}", fault.message);
    }

    #[test]
    fn a_packet_of_an_encrypted_network_fits_into_another() {
        let max = (MTU_MAX - ENCRYPTED_OVERHEAD).to_string();
        let good = network(&[("encrypted", ""), (NetworkSpec::MTU, &max)]);
        assert_eq!(check_network_spec(&good), Ok(()));
        let large = MTU_MAX.to_string();
        assert_eq!(check_network_spec(&network(&[(NetworkSpec::MTU, &large)])), Ok(()));
        let bad = network(&[("encrypted", ""), (NetworkSpec::MTU, &large)]);
        assert_eq!(check_network_spec(&bad).unwrap_err().field, "--opt");
    }
}
