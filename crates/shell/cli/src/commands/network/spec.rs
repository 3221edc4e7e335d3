//! The spec of a new network.
//!
//! Owns: how it is made of options, and whose the network will be.
//! Does not know: what is free. Invariant: docker's words and defaults.

use std::net::IpAddr;

use types::{IpamPool, NetworkDriver, NetworkSpec};

use super::Side;
use crate::args::network::Create;
use crate::error::CliError;
use crate::values::labels;

pub(super) fn of(args: &Create) -> Result<(NetworkSpec, Side), CliError> {
    let driver = NetworkDriver::from_name(&args.driver).ok_or_else(|| {
        CliError::usage("--driver", format!("could not find plugin {}", args.driver))
            .hint("there are: overlay, bridge, macvlan, ipvlan")
    })?;
    let side = match args.scope.as_deref() {
        None if driver == NetworkDriver::Overlay || args.ingress => Side::Cluster,
        None | Some("local") => Side::Node,
        Some("swarm") => Side::Cluster,
        Some(other) => {
            let message = format!("unknown scope `{other}`: swarm or local");
            return Err(CliError::usage("--scope", message));
        }
    };
    if args.ipam_driver != "default" {
        let message = format!("unknown driver {}: there is only default", args.ipam_driver);
        return Err(CliError::usage("--ipam-driver", message));
    }
    if let Some((key, _)) = args.ipam_opt.first() {
        let message = format!("unknown option {key}: the default driver has none");
        return Err(CliError::usage("--ipam-opt", message));
    }
    let spec = NetworkSpec {
        name: args.name.clone(),
        labels: labels(&args.label),
        driver,
        attachable: args.attachable,
        ingress: args.ingress,
        internal: args.internal,
        ipv4: args.ipv4,
        ipv6: args.ipv6,
        ipam: pools(args)?,
        options: args.opt.iter().cloned().collect(),
        config_only: args.config_only,
        config_from: args.config_from.clone().unwrap_or_default(),
    };
    Ok((spec, side))
}

/// Ranges, gateways and reserved addresses belong to the subnet that they lie in.
fn pools(args: &Create) -> Result<Vec<IpamPool>, CliError> {
    let pool = |subnet: &ipnet::IpNet| IpamPool { subnet: Some(*subnet), ..IpamPool::default() };
    let mut pools: Vec<IpamPool> = args.subnet.iter().map(pool).collect();
    for range in &args.ip_range {
        let pool = pool_of(&mut pools, range.network()).filter(|pool| {
            pool.subnet.is_some_and(|subnet| subnet.prefix_len() <= range.prefix_len())
        });
        let Some(pool) = pool else {
            let message = format!("no matching subnet for range {range}");
            return Err(CliError::usage("--ip-range", message));
        };
        if pool.range.replace(*range).is_some() {
            let message = format!("cannot configure multiple ranges ({range}) on the same subnet");
            return Err(CliError::usage("--ip-range", message));
        }
    }
    for gateway in &args.gateway {
        let Some(pool) = pool_of(&mut pools, *gateway) else {
            let message = format!("no matching subnet for gateway {gateway}");
            return Err(CliError::usage("--gateway", message));
        };
        if pool.gateway.replace(*gateway).is_some() {
            let message =
                format!("cannot configure multiple gateways ({gateway}) for the same subnet");
            return Err(CliError::usage("--gateway", message));
        }
    }
    for (name, text) in &args.aux_address {
        let address: IpAddr = text.parse().map_err(|_| {
            CliError::usage("--aux-address", format!("`{name}={text}` has no address: write a=b"))
        })?;
        let Some(pool) = pool_of(&mut pools, address) else {
            let message = format!("no matching subnet for aux-address {address}");
            return Err(CliError::usage("--aux-address", message));
        };
        pool.aux.insert(name.clone(), address);
    }
    Ok(pools)
}

fn pool_of(pools: &mut [IpamPool], address: IpAddr) -> Option<&mut IpamPool> {
    pools.iter_mut().find(|pool| pool.subnet.is_some_and(|subnet| subnet.contains(&address)))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        create: Create,
    }

    fn made(line: &str) -> Result<(NetworkSpec, Side), String> {
        let words = std::iter::once("create").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        of(&line.create).map_err(|error| error.message)
    }

    #[test]
    fn the_driver_says_whose_a_network_is() {
        for (line, driver, side) in [
            ("lan", "bridge", Side::Node),
            ("-d overlay back", "overlay", Side::Cluster),
            ("-d macvlan -o parent=eth0 lan", "macvlan", Side::Node),
            ("-d ipvlan --scope local lan", "ipvlan", Side::Node),
            ("-d macvlan --scope swarm --config-from c lan", "macvlan", Side::Cluster),
            ("--config-only --subnet 10.7.0.0/24 -o parent=eth0 c", "bridge", Side::Node),
        ] {
            let (spec, found) = made(line).unwrap();
            assert_eq!((spec.driver.name(), found), (driver, side), "{line}");
        }
        assert!(made("--ipv4=false --ipv6 lan").unwrap().0.ipv6);
    }

    #[test]
    fn what_is_in_a_subnet_belongs_to_it() {
        let line = "--subnet fd00:1::/64 --subnet 10.1.0.0/24 --ip-range 10.1.0.128/25 \
                    --gateway 10.1.0.254 --gateway fd00:1::9 --aux-address a=10.1.0.7 --ipv6 lan";
        let (spec, _) = made(line).unwrap();
        let [six, four] = &spec.ipam[..] else { panic!("{:?}", spec.ipam) };
        assert_eq!(six.gateway, "fd00:1::9".parse().ok());
        assert_eq!(four.range, "10.1.0.128/25".parse().ok());
        assert_eq!((four.gateway, four.aux.len()), ("10.1.0.254".parse().ok(), 1));
        for (line, part) in [
            ("--ip-range 10.1.0.0/24 lan", "--ip-range: no matching subnet for range"),
            ("--subnet 10.1.0.0/24 --ip-range 10.1.0.0/16 lan", "no matching subnet"),
            ("--gateway 10.1.0.1 lan", "--gateway: no matching subnet"),
            ("--subnet 10.1.0.0/24 --gateway 10.1.0.1 --gateway 10.1.0.2 lan", "multiple"),
            ("--subnet 10.1.0.0/24 --aux-address a=10.2.0.1 lan", "no matching subnet"),
            ("--subnet 10.1.0.0/24 --aux-address a=b lan", "has no address"),
            ("-d weave lan", "could not find plugin weave"),
            ("--scope global lan", "--scope: unknown scope"),
            ("--ipam-driver dhcp lan", "--ipam-driver"),
            ("--ipam-opt a=b lan", "--ipam-opt"),
        ] {
            let error = made(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
