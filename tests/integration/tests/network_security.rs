//! What a container must not reach, with real daemons: other networks, unpublished ports, the
//! managers, other containers' resolvers, the VXLAN port.

#![allow(clippy::unwrap_used)] // helpers of tests, outside a test function
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use integration::{
    IMAGE, LONG, Lab, SHORT, Task, connects_to, in_namespace, joined, udp_refused, wait_for,
    wait_until,
};

const MANAGERS: u16 = 2377;
const VXLAN: u16 = 4789;

fn connects(lab: &Lab, from: &Task, to: SocketAddr) -> bool {
    let netns = lab.host_of(from).task_netns(&from.id);
    in_namespace(&netns, move || Ok(connects_to(to))).unwrap()
}

/// The address of each interface of a task, by its name.
fn addresses(lab: &Lab, task: &Task) -> BTreeMap<String, IpAddr> {
    let text = lab.host_of(task).inside_task(&task.id, "ip", &["-4", "-o", "addr"]).unwrap();
    let line = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let name = words.next()?.to_owned();
        let address = words.nth(1)?.split('/').next()?.parse().ok()?;
        (name != "lo").then_some((name, address))
    };
    text.ok().unwrap().lines().filter_map(line).collect()
}

#[test]
fn a_container_reaches_only_what_it_may() {
    let lab = joined(3, 0).unwrap();
    let manager = lab.host(1);
    for network in ["front", "back"] {
        manager.shoal(&["network", "create", "-d", "overlay", network]).unwrap().ok().unwrap();
    }
    // The server listens on port 80 of all its interfaces; 9000 is published, but leads to 81.
    for (name, network) in [("client", "front"), ("server", "back"), ("friend", "back")] {
        let mut words = vec!["service", "create", "-d", "--name", name, "--mode", "global"];
        words.extend(["--network", network]);
        if name == "server" {
            words.extend(["-p", "9000:81"]);
        }
        words.push(IMAGE);
        manager.shoal(&words).unwrap().ok().unwrap();
    }
    let clients = manager.wait_for_running("client", 3, LONG).unwrap();
    let servers = manager.wait_for_running("server", 3, LONG).unwrap();
    let friends = manager.wait_for_running("friend", 3, LONG).unwrap();

    // Who is on the network reaches it, on every node: what follows is not for want of a path.
    for friend in &friends {
        for server in &servers {
            let address = addresses(&lab, server)["eth0"];
            wait_until("a friend's connection", SHORT, || {
                Ok(connects(&lab, friend, SocketAddr::new(address, 80)))
            })
            .unwrap();
        }
    }
    let vip = wait_for("the virtual address", SHORT, || {
        Ok(Some(lab.host_of(&friends[0]).resolve(&friends[0].id, "a", "server")?[0]))
    })
    .unwrap();
    let stranger = &clients[0];
    let home = lab.host_of(stranger);
    assert!(home.resolve(&stranger.id, "a", "server").is_err(), "names of another network");
    let mut closed = vec![SocketAddr::new(vip, 80)];
    for server in &servers {
        let all = addresses(&lab, server);
        // Its own network, and the mesh, where port 80 is not what was published.
        closed.extend(all.values().map(|address| SocketAddr::new(*address, 80)));
        closed.extend(all.values().map(|address| SocketAddr::new(*address, 53)));
    }
    for host in lab.hosts() {
        closed.push(host.port_v4(MANAGERS));
    }
    for target in closed {
        assert!(!connects(&lab, stranger, target), "{target} from another network");
    }
    for host in lab.hosts() {
        // The managers' port is open to hosts.
        let target = host.port_v4(MANAGERS);
        assert!(in_namespace(&home.netns(), move || Ok(connects_to(target))).unwrap());
        let target = host.port_v4(VXLAN);
        let netns = home.task_netns(&stranger.id);
        let refused = in_namespace(&netns, move || Ok(udp_refused(target)));
        assert!(refused.unwrap(), "the VXLAN port of {target} from a container");
    }
}
