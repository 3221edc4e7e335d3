//! What an administrator types for the same packets.
//!
//! Owns: routes and a container's links made with `ip`. Does not know: names, rules, balancers.
//! Invariant: each is made in new namespaces, as ours is. It tells a slow machine from a slow
//! program.

use std::fmt::Write as _;
use std::fs::File;
use std::net::Ipv4Addr;
use std::time::Instant;

use anyhow::Result;

use super::rig::{address, new_namespace, pair, path_of, run_in};
use crate::figure::median;

/// Microseconds of so many routes to addresses, with the start of the program.
pub(super) fn routes(count: u32) -> Result<f64> {
    let ends = cabled()?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("routes");
    let mut lines = String::new();
    for number in 0..count {
        let to = Ipv4Addr::from_bits(TO + number);
        writeln!(lines, "route add {to}/32 via 192.0.2.2 dev eth0 onlink")?;
    }
    std::fs::write(&file, lines)?;
    let begin = Instant::now();
    run_in(&ends[0], &format!("ip -batch {}", file.display()))?;
    Ok(begin.elapsed().as_secs_f64() * 1e6)
}

/// Microseconds, in the middle, until a container's link to one network carries packets.
pub(super) fn container() -> Result<f64> {
    let sandbox = new_namespace()?;
    let mut containers = Vec::new();
    let mut times = Vec::new();
    for number in 0..CONTAINERS {
        let container = new_namespace()?;
        let own = Ipv4Addr::from_bits(TO + number);
        let link = format!("c{number}");
        let begin = Instant::now();
        for line in [
            format!("ip link add {link} type veth peer name eth0 netns {}", path_of(&container)),
            format!("ip link set {link} up"),
            format!("ip route add {own}/32 dev {link}"),
            format!("ip neigh add {own} lladdr 02:00:00:00:00:02 dev {link} nud permanent"),
        ] {
            run_in(&sandbox, &line)?;
        }
        for line in [
            "ip link set eth0 address 02:00:00:00:00:02 up".to_owned(),
            format!("ip addr add {own}/8 dev eth0 noprefixroute"),
            "ip neigh add 10.0.0.1 lladdr 02:00:00:00:00:01 dev eth0 nud permanent".to_owned(),
            "ip route add default via 10.0.0.1 dev eth0 onlink".to_owned(),
        ] {
            run_in(&container, &line)?;
        }
        times.push(begin.elapsed().as_secs_f64() * 1e6);
        containers.push(container);
    }
    Ok(median(&times))
}

fn cabled() -> Result<[File; 2]> {
    let ends = [new_namespace()?, new_namespace()?];
    pair(&ends[0], "eth0", &ends[1], "eth0")?;
    for end in &ends {
        run_in(end, "ip link set eth0 up")?;
    }
    run_in(&ends[0], "ip addr add 192.0.2.1/24 dev eth0")?;
    Ok(ends)
}

const TO: u32 = address(10, 16, 0, 0);
const CONTAINERS: u32 = 20;
