//! Lines through tunnels, and what flows over them.
//!
//! Owns: hosts and containers at both ends, and round trips.
//! Does not know: whose daemons stand between.
//! Invariant: a line has carried a packet before it is measured.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::node::{Kind, MTU, Node, inner};
use super::space::{Space, cabled};
use super::stream::{Flow, Sender};
use super::{Wire, await_that};

/// Two hosts with a tunnel between them.
pub(super) struct Hosts {
    pub(super) spaces: [Space; 2],
    pub(super) nodes: [Node; 2],
}

impl Hosts {
    pub(super) fn lay(kind: &Kind, wire: Wire) -> Result<Self> {
        let spaces = cabled(wire)?;
        let start = |at: usize| Node::start(kind, &spaces[at], &spaces[at], at as u8 + 1);
        let mut nodes = [start(0)?, start(1)?];
        nodes[0].add_peer(2)?;
        nodes[1].add_peer(1)?;
        let hosts = Self { spaces, nodes };
        let answers = || round_trips(&hosts.spaces, inner(2).into(), 1).is_ok();
        await_that("the tunnel answers", answers)?;
        Ok(hosts)
    }

    pub(super) fn stream(&self, sender: Sender) -> Result<Flow> {
        sender.flow(&self.spaces, inner(2).into(), &self.nodes)
    }

    /// Milliseconds on average, over those of the cable.
    pub(super) fn added_round_trip(&self) -> Result<f64> {
        let through = round_trips(&self.spaces, inner(2).into(), ROUND_TRIPS)?;
        let beside = round_trips(&self.spaces, [192, 0, 2, 2].into(), ROUND_TRIPS)?;
        Ok(through - beside)
    }

    /// Milliseconds from the order to add a peer, known to the other side already, to an answer.
    pub(super) fn first_packet() -> Result<f64> {
        let spaces = cabled(Wire::Segments)?;
        let start = |at: usize| Node::start(&Kind::Ours, &spaces[at], &spaces[at], at as u8 + 1);
        let mut nodes = [start(0)?, start(1)?];
        // The cable's own first packet is not meant.
        round_trips(&spaces, [192, 0, 2, 2].into(), 1)?;
        nodes[1].add_peer(1)?;
        let (echo, client) = echo(&spaces, inner(2).into())?;
        let begun = Instant::now();
        nodes[0].add_peer(2)?;
        trip(&client)?;
        let took = begun.elapsed();
        drop(client);
        drop(echo);
        Ok(took.as_secs_f64() * 1e3)
    }
}

/// Two containers on a network over a tunnel: a link to the network's namespace on each node, which
/// routes to VXLAN, which was made beside the tunnel.
pub(super) struct Containers {
    containers: [Space; 2],
    nodes: [Node; 2],
    _spaces: Vec<Space>,
}

impl Containers {
    pub(super) fn lay(wire: Wire) -> Result<Self> {
        let hosts = cabled(wire)?;
        let insides = [Space::new()?, Space::new()?];
        let start = |at: usize| Node::start(&Kind::Ours, &hosts[at], &insides[at], at as u8 + 1);
        let mut nodes = [start(0)?, start(1)?];
        nodes[0].add_peer(2)?;
        nodes[1].add_peer(1)?;
        let sandboxes = [sandbox(&insides[0], 1)?, sandbox(&insides[1], 2)?];
        let containers = [container(&sandboxes[0], 1)?, container(&sandboxes[1], 2)?];
        let answers = || round_trips(&containers, [10, 77, 2, 2].into(), 1).is_ok();
        await_that("the network answers", answers)?;
        let spaces = hosts.into_iter().chain(insides).chain(sandboxes).collect();
        Ok(Self { containers, nodes, _spaces: spaces })
    }

    pub(super) fn stream(&self, sender: Sender) -> Result<Flow> {
        sender.flow(&self.containers, [10, 77, 2, 2].into(), &self.nodes)
    }
}

fn sandbox(inside: &Space, own: u8) -> Result<Space> {
    let space = Space::new()?;
    let other = 3 - own;
    inside.run(&format!(
        "ip link add vx address 02:00:00:00:00:0{own} mtu {mtu} type vxlan id 4097 local {local} \
         dstport 4789 nolearning noudpcsum",
        local = inner(own),
        mtu = MTU - 50,
    ))?;
    inside.run(&format!("ip link set vx netns {}", space.path()))?;
    space.run("ip link set vx up")?;
    let far = format!("02:00:00:00:00:0{other}");
    space.run(&format!("bridge fdb append {far} dev vx dst {}", inner(other)))?;
    space.run(&format!("ip neigh add 169.254.0.{other} lladdr {far} dev vx nud permanent"))?;
    space.run(&format!("ip route add 10.77.{other}.0/24 via 169.254.0.{other} dev vx onlink"))?;
    space.enter(|| Ok(std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?))?;
    Ok(space)
}

fn container(sandbox: &Space, own: u8) -> Result<Space> {
    let space = Space::new()?;
    let mtu = MTU - 50;
    sandbox.run(&format!(
        "ip link add c0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}",
        space.path()
    ))?;
    sandbox.run(&format!("ip addr add 10.77.{own}.1/24 dev c0"))?;
    sandbox.run("ip link set c0 up")?;
    space.run(&format!("ip addr add 10.77.{own}.2/24 dev eth0"))?;
    space.run("ip link set eth0 up")?;
    space.run(&format!("ip route add default via 10.77.{own}.1"))?;
    Ok(space)
}

/// Milliseconds of one, on average.
fn round_trips(spaces: &[Space; 2], to: IpAddr, count: u32) -> Result<f64> {
    let (_echo, client) = echo(spaces, to)?;
    trip(&client)?;
    let begun = Instant::now();
    for _ in 0..count {
        trip(&client)?;
    }
    Ok(begun.elapsed().as_secs_f64() * 1e3 / f64::from(count))
}

fn trip(client: &UdpSocket) -> Result<()> {
    client.send(&[7; 64])?;
    client.recv(&mut [0; 64]).context("no answer")?;
    Ok(())
}

/// Ends the echo when it is dropped.
struct Ending(UdpSocket, SocketAddr);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.send_to(b"", self.1);
    }
}

/// A server that answers, and a client that asks it.
fn echo(spaces: &[Space; 2], to: IpAddr) -> Result<(Ending, UdpSocket)> {
    let server = spaces[1].enter(move || Ok(UdpSocket::bind((to, 0))?))?;
    let address = server.local_addr()?;
    let ending = spaces[1].enter(move || Ok(UdpSocket::bind((to, 0))?))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length @ 1.., from)) = server.recv_from(&mut buffer) {
            let _ = server.send_to(&buffer[..length], from);
        }
    });
    let client = spaces[0].enter(move || {
        let client = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        client.connect(address)?;
        client.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(client)
    })?;
    Ok((Ending(ending, address), client))
}

const ROUND_TRIPS: u32 = 2000;
