//! The checks of networks that one node has for itself.
//!
//! Owns: every refusal of such a network's spec, whatever else the node has.
//! Does not know: what the node's kernel can do.
//! Invariant: each driver has its options, and no other's.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::network::{check_from_config, check_mtu, check_pools, is_interface, operator_fields};
use super::{check_labels, check_name};
use crate::local_option as option;
use crate::{ErrorCode, Family, Fault, NetworkDriver, NetworkId, NetworkSpec, Subnet};

/// Refuses a network that a node cannot have, whatever else there is.
pub fn check_local_network_spec(spec: &NetworkSpec) -> Result<(), Fault> {
    check_name("name", &spec.name)?;
    if NetworkId::from_predefined_name(&spec.name).is_some() {
        let name = &spec.name;
        let message =
            format!("operation is not permitted on predefined {name} network: every node has it");
        return Err(Fault { code: ErrorCode::Conflict, ..Fault::invalid("name", message) });
    }
    check_labels("--label", &spec.labels)?;
    if spec.config_only {
        return check_config_only(spec);
    }
    if !spec.config_from.is_empty() && spec.driver.is_of_nodes() && !spec.ingress {
        return check_from_config(spec);
    }
    check_made(spec)
}

/// The spec of a network that is made of a configuration: what it says itself, and what stands in
/// the other.
///
/// # Errors
/// When the two do not make a network that a node can have.
pub fn from_config(spec: &NetworkSpec, config: &NetworkSpec) -> Result<NetworkSpec, Fault> {
    let mut made = NetworkSpec {
        ipv4: config.ipv4,
        ipv6: config.ipv6,
        ipam: config.ipam.clone(),
        options: config.options.clone(),
        ..spec.clone()
    };
    for (key, value) in &config.labels {
        made.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    check_made(&made)?;
    Ok(made)
}

/// Options may be those of any driver: which one it will be is said by who refers to it.
fn check_config_only(spec: &NetworkSpec) -> Result<(), Fault> {
    for (set, field) in [
        (spec.ingress, "--ingress"),
        (spec.internal, "--internal"),
        (spec.attachable, "--attachable"),
    ] {
        if set {
            return Err(operator_fields(field));
        }
    }
    if !spec.config_from.is_empty() {
        let message = "a configuration network cannot depend on another configuration network";
        return Err(Fault::invalid("--config-from", message));
    }
    let drivers = [NetworkDriver::Bridge, NetworkDriver::Macvlan, NetworkDriver::Ipvlan];
    let mut worst = Ok(());
    for driver in drivers {
        match check_made(&NetworkSpec { driver, ..spec.clone() }) {
            Ok(()) => return Ok(()),
            // That one driver has no such option says less than what another one says of it.
            Err(fault) if worst.is_ok() || !fault.message.starts_with(UNKNOWN) => {
                worst = Err(fault)
            }
            Err(_) => {}
        }
    }
    worst
}

/// One that says everything of itself.
fn check_made(spec: &NetworkSpec) -> Result<(), Fault> {
    let driver = spec.driver.name();
    match spec.driver {
        NetworkDriver::Bridge | NetworkDriver::Macvlan | NetworkDriver::Ipvlan => {}
        NetworkDriver::Overlay => {
            let message = "an overlay is the cluster's: its scope is swarm";
            return Err(Fault::invalid("--scope", message));
        }
        NetworkDriver::Host | NetworkDriver::None => {
            let message = format!("only one instance of \"{driver}\" network is allowed");
            return Err(Fault::invalid("--driver", message));
        }
    }
    if spec.ingress {
        let message = "the network of the routing mesh is an overlay";
        return Err(Fault::invalid("--ingress", message));
    }
    if !spec.ipv4 && !spec.ipv6 {
        return Err(Fault::invalid("--ipv4", "IPv4 or IPv6 must be enabled"));
    }
    check_options(spec)?;
    check_pools(spec)?;
    for family in Family::ALL {
        if spec.pools_of(family).count() > 1 {
            let message = format!("{driver} network can have one {} subnet at most", family.name());
            return Err(Fault::invalid("--subnet", message));
        }
    }
    check_aux(spec)
}

const UNKNOWN: &str = "unknown option";

fn known_options(driver: NetworkDriver) -> &'static [&'static str] {
    match driver {
        NetworkDriver::Bridge => {
            &[NetworkSpec::MTU, option::BRIDGE_NAME, option::MASQUERADE, option::BETWEEN]
        }
        NetworkDriver::Macvlan => &[NetworkSpec::MTU, option::PARENT, option::MACVLAN_MODE],
        NetworkDriver::Ipvlan => {
            &[NetworkSpec::MTU, option::PARENT, option::IPVLAN_MODE, option::IPVLAN_FLAG]
        }
        NetworkDriver::Overlay | NetworkDriver::Host | NetworkDriver::None => &[],
    }
}

pub(super) fn check_options(spec: &NetworkSpec) -> Result<(), Fault> {
    let (driver, known) = (spec.driver.name(), known_options(spec.driver));
    for (key, value) in &spec.options {
        let bad = |what: String| Err(Fault::invalid("--opt", format!("{key}={value}: {what}")));
        if !known.contains(&key.as_str()) {
            let message = format!("{UNKNOWN} {key}: {driver} networks have {}", known.join(", "));
            return Err(Fault::invalid("--opt", message));
        }
        let words: &[&str] = match key.as_str() {
            NetworkSpec::MTU => {
                check_mtu(spec, value)?;
                continue;
            }
            option::MASQUERADE | option::BETWEEN => &["true", "false"],
            option::MACVLAN_MODE => &option::MACVLAN_MODES,
            option::IPVLAN_MODE => &option::IPVLAN_MODES,
            option::IPVLAN_FLAG => &option::IPVLAN_FLAGS,
            _ if is_interface(value) && !value.is_empty() => continue,
            _ => return bad("must be the name of an interface".into()),
        };
        if !words.contains(&value.as_str()) {
            return bad(format!("must be one of {}", words.join(", ")));
        }
    }
    Ok(())
}

/// Addresses of the subnets that are somebody else's, each once.
fn check_aux(spec: &NetworkSpec) -> Result<(), Fault> {
    let mut seen: BTreeSet<IpAddr> = BTreeSet::new();
    for pool in &spec.ipam {
        let Some(net) = pool.subnet else { continue };
        for (name, address) in &pool.aux {
            let bad =
                |what| Err(Fault::invalid("--aux-address", format!("{name}={address} {what}")));
            if !Subnet::new(net, pool.range, pool.gateway).may_hold(*address) {
                return bad("must be an address of the subnet that is not its gateway");
            }
            if !seen.insert(*address) {
                return bad("is there twice");
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IpamPool;

    fn spec(driver: NetworkDriver, options: &[(&str, &str)]) -> NetworkSpec {
        let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        NetworkSpec {
            name: "net".into(),
            driver,
            ipv4: true,
            options: options.iter().map(pair).collect(),
            ..NetworkSpec::default()
        }
    }

    #[test]
    fn each_driver_has_its_own_options() {
        use NetworkDriver::{Bridge, Ipvlan, Macvlan};
        for (driver, options) in [
            (Bridge, &[(option::BRIDGE_NAME, "br7"), (option::BETWEEN, "false")][..]),
            (Bridge, &[(NetworkSpec::MTU, "1400"), (option::MASQUERADE, "true")]),
            (Macvlan, &[(option::PARENT, "eth0.7"), (option::MACVLAN_MODE, "passthru")]),
            (Ipvlan, &[(option::PARENT, "eth0"), (option::IPVLAN_MODE, "l3s")]),
        ] {
            assert_eq!(check_local_network_spec(&spec(driver, options)), Ok(()), "{options:?}");
        }
        for (driver, option, part) in [
            (Bridge, (option::PARENT, "eth0"), "unknown option parent: bridge networks have"),
            (Bridge, (option::BETWEEN, "yes"), "true, false"),
            (Bridge, (option::BRIDGE_NAME, "much-too-long-a-name"), "interface"),
            (Bridge, (NetworkSpec::MTU, "9"), "between"),
            (Macvlan, (option::MACVLAN_MODE, "source"), "bridge, private, vepa, passthru"),
            (Ipvlan, (option::IPVLAN_MODE, "l4"), "l2, l3, l3s"),
            (Ipvlan, (NetworkSpec::VNI, "7"), "unknown option"),
        ] {
            let fault = check_local_network_spec(&spec(driver, &[option])).unwrap_err();
            assert_eq!(fault.field, "--opt");
            assert!(fault.message.contains(part), "{}", fault.message);
        }
    }

    #[test]
    fn a_configuration_says_what_a_network_does_not_say_itself() {
        let pool = |text: &str| IpamPool { subnet: text.parse().ok(), ..IpamPool::default() };
        let mut config = spec(NetworkDriver::None, &[(option::PARENT, "eth0")]);
        config.config_only = true;
        config.ipam = vec![pool("10.7.0.0/24")];
        config.labels = [("a".to_owned(), "b".to_owned())].into();
        assert_eq!(check_local_network_spec(&config), Ok(()));
        let mut of = spec(NetworkDriver::Macvlan, &[]);
        of.config_from = "lan-config".into();
        assert_eq!(check_local_network_spec(&of), Ok(()));
        let made = from_config(&of, &config).unwrap();
        assert_eq!((&made.ipam, &made.options), (&config.ipam, &config.options));
        assert_eq!((made.driver, made.labels.len()), (NetworkDriver::Macvlan, 1));
        // What the configuration says must be something that the driver has.
        of.driver = NetworkDriver::Bridge;
        assert!(
            from_config(&of, &config).unwrap_err().message.starts_with("unknown option parent")
        );

        for (change, field) in [
            ((|spec| spec.internal = true) as fn(&mut NetworkSpec), "--internal"),
            (|spec| spec.ingress = true, "--ingress"),
            (|spec| spec.attachable = true, "--attachable"),
            (|spec| spec.config_from = "other".into(), "--config-from"),
            (|spec| drop(spec.options.insert(option::MACVLAN_MODE.into(), "x".into())), "--opt"),
            (|spec| drop(spec.options.insert("x".into(), "y".into())), "--opt"),
        ] {
            let mut bad = config.clone();
            change(&mut bad);
            assert_eq!(check_local_network_spec(&bad).unwrap_err().field, field, "{bad:?}");
        }
        for (change, field) in [
            ((|spec| spec.ipv6 = true) as fn(&mut NetworkSpec), "--ipv6"),
            (|spec| spec.ipam = vec![IpamPool::default()], "--subnet"),
            (|spec| drop(spec.options.insert(option::PARENT.into(), "eth1".into())), "--opt"),
        ] {
            let mut bad = of.clone();
            change(&mut bad);
            assert_eq!(check_local_network_spec(&bad).unwrap_err().field, field, "{bad:?}");
        }
    }

    #[test]
    fn a_network_that_nodes_make_says_nothing_of_addresses() {
        use NetworkDriver::{Bridge, Host, Macvlan, Overlay};
        let of =
            |driver, config: &str| NetworkSpec { config_from: config.into(), ..spec(driver, &[]) };
        let check = crate::check_network_spec;
        for good in [of(Macvlan, "parts"), of(Bridge, ""), of(Bridge, "parts")] {
            assert_eq!(check(&good), Ok(()), "{good:?}");
        }
        let pool = IpamPool { subnet: "10.7.0.0/24".parse().ok(), ..IpamPool::default() };
        for (bad, field) in [
            (of(Macvlan, ""), "--config-from"),
            (of(Overlay, "parts"), "--config-from"),
            (of(Host, ""), "--driver"),
            (NetworkSpec { ipam: vec![pool.clone()], ..of(Bridge, "") }, "--subnet"),
            (NetworkSpec { ipam: vec![pool], ..of(Macvlan, "parts") }, "--subnet"),
            (NetworkSpec { ipv6: true, ..of(Bridge, "") }, "--ipv6"),
            (NetworkSpec { ingress: true, ..of(Bridge, "") }, "--ingress"),
            (NetworkSpec { config_only: true, ..of(Bridge, "") }, "--config-only"),
        ] {
            assert_eq!(check(&bad).unwrap_err().field, field, "{bad:?}");
        }
    }

    #[test]
    fn what_a_node_cannot_have_is_refused_with_its_field() {
        let bridge = || spec(NetworkDriver::Bridge, &[]);
        let pool = |text: &str| IpamPool { subnet: text.parse().ok(), ..IpamPool::default() };
        let aux = |address: &str| IpamPool {
            aux: [("a".to_owned(), address.parse().unwrap())].into(),
            ..pool("10.7.0.0/24")
        };
        for (spec, field) in [
            (NetworkSpec { name: "bridge".into(), ..bridge() }, "name"),
            (NetworkSpec { ingress: true, ..bridge() }, "--ingress"),
            (NetworkSpec { ipv4: false, ..bridge() }, "--ipv4"),
            (NetworkSpec { ipam: vec![pool("fd00::/64")], ..bridge() }, "--subnet"),
            (
                NetworkSpec { ipam: vec![pool("10.1.0.0/24"), pool("10.2.0.0/24")], ..bridge() },
                "--subnet",
            ),
            (NetworkSpec { ipam: vec![aux("10.7.0.1")], ..bridge() }, "--aux-address"),
            (NetworkSpec { ipam: vec![aux("10.8.0.9")], ..bridge() }, "--aux-address"),
            (spec(NetworkDriver::Host, &[]), "--driver"),
            (spec(NetworkDriver::Overlay, &[]), "--scope"),
        ] {
            assert_eq!(check_local_network_spec(&spec).unwrap_err().field, field, "{spec:?}");
        }
        let good = NetworkSpec { ipam: vec![aux("10.7.0.9")], ..bridge() };
        assert_eq!(check_local_network_spec(&good), Ok(()));
    }
}
