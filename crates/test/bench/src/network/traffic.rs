//! Connections and bytes from one namespace to another.
//!
//! Owns: the lines that are compared, and the programs at their ends.
//! Does not know: how figures are shown.
//! Invariant: both ends of a line and of its peer run the same code.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::Linger;
use ports::network::{ContainerNetwork, Network};
use types::{
    Attachment, EndpointMode, EndpointPart, NetworkId, NetworkPart, PortPart, PortProtocol,
    PublishMode, ServiceId, ServicePart,
};

use super::rig::{
    Host, INGRESS, Rig, enter, host_address, id, network_part, new_namespace, open, pair, run_in,
};

/// From where, and to what.
#[derive(Debug)]
pub(super) struct Line {
    from: File,
    to: IpAddr,
    port: u16,
}

pub(super) struct Lines {
    hosts: [Host; 2],
    /// On a network without virtual addresses.
    plain: Line,
    overlay: Line,
    service: Line,
    bridge: Line,
    mesh_own: Line,
    mesh_other: Line,
    route: Line,
    /// Through the other node, which gives the client's address up.
    hidden: Line,
    servers: Vec<Server>,
}

impl Lines {
    pub(super) async fn lay(rig: &Rig) -> Result<Self> {
        let hosts = [Host::open(rig, 1).await?, Host::open(rig, 2).await?];
        let client = rig.plug(100)?;
        for host in &hosts {
            host.path.update(directory(host)).await?;
        }
        let near = connect(&hosts[0], "client", attachment(1, [10, 9, 0, 1]), None).await?;
        let mesh = Some(attachment(INGRESS, [10, 255, 0, 2]));
        let far = connect(&hosts[1], "server", attachment(1, [10, 9, 0, 2]), mesh).await?;
        let plain = connect(&hosts[0], "plain", attachment(PLAIN, [10, 9, 0, 1]), None).await?;
        let plain_far =
            connect(&hosts[1], "plain-far", attachment(PLAIN, [10, 9, 0, 2]), None).await?;
        let (bridged, bridged_far) = bridge(&hosts)?;
        let routed = route(&hosts[1], &client)?;
        hide(&hosts[0])?;
        let servers = [&far, &plain_far, &bridged_far, &routed].map(Server::start);
        let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        let line = |from: &File, to: IpAddr, port| -> Result<Line> {
            Ok(Line { from: from.try_clone()?, to, port })
        };
        Ok(Self {
            plain: line(&plain, [10, 9, 0, 2].into(), PORT)?,
            overlay: line(&near, [10, 9, 0, 2].into(), PORT)?,
            service: line(&near, [10, 8, 0, 1].into(), PORT)?,
            bridge: line(&bridged, [10, 77, 0, 2].into(), PORT)?,
            mesh_own: line(&client, host_address(2), PUBLISHED)?,
            mesh_other: line(&client, host_address(1), PUBLISHED)?,
            route: line(&client, [10, 78, 0, 2].into(), PORT)?,
            hidden: line(&client, host_address(1), HIDDEN)?,
            hosts,
            servers,
        })
    }

    pub(super) fn comparisons(&self) -> [(&'static str, &Line, &Line, &'static str); 5] {
        let bridge = "VXLAN bridge";
        [
            ("network without services", &self.plain, &self.bridge, bridge),
            ("network with services, direct", &self.overlay, &self.bridge, bridge),
            ("virtual address", &self.service, &self.bridge, bridge),
            ("mesh through the task's own node", &self.mesh_own, &self.route, "direct route"),
            ("mesh through another node", &self.mesh_other, &self.hidden, "SNAT"),
        ]
    }

    pub(super) fn overlay_and_bridge(&self) -> (&Line, &Line) {
        (&self.overlay, &self.bridge)
    }

    /// The host of the clients, and the line to a virtual address.
    pub(super) fn client_side(&self) -> (&Host, &Line) {
        (&self.hosts[0], &self.service)
    }

    pub(super) async fn take_up(self) -> Result<()> {
        drop(self.servers);
        for host in self.hosts {
            host.path.remove_all().await?;
            host.dir.close()?;
        }
        Ok(())
    }
}

fn directory(host: &Host) -> types::DirectoryUpdate {
    let networks: [NetworkPart; 3] = [network_part(1), network_part(PLAIN), network_part(INGRESS)];
    let mut told = host.told(&networks);
    for (network, v4, backend) in
        [(1, [10, 8, 0, 1], [10, 9, 0, 2]), (INGRESS, [10, 255, 9, 9], [10, 255, 0, 2])]
    {
        let (network, service) = (id(1000 + u128::from(network)), id(2000 + u128::from(network)));
        told.services.push(ServicePart {
            network,
            service,
            name: "service".into(),
            aliases: Vec::new(),
            mode: EndpointMode::Vip,
            v4: Some(v4.into()),
            v6: None,
            ports: vec![PortPart {
                name: String::new(),
                protocol: PortProtocol::Tcp,
                target: PORT,
                published: PUBLISHED,
                mode: PublishMode::Ingress,
                host: String::new(),
            }],
        });
        told.endpoints.push(endpoint(network, 2, backend, Some(service)));
    }
    // The client, so that there is a way back to it.
    told.endpoints.push(endpoint(id(1001), 1, [10, 9, 0, 1], None));
    for number in [1, 2] {
        let network = id(1000 + u128::from(PLAIN));
        told.endpoints.push(endpoint(network, number, [10, 9, 0, number as u8], None));
    }
    told
}

fn endpoint(
    network: NetworkId,
    host: u32,
    v4: [u8; 4],
    service: Option<ServiceId>,
) -> EndpointPart {
    EndpointPart {
        network,
        task: id(3000 + u128::from(host)),
        service,
        node: id(u128::from(host)),
        number: host,
        v4: Some(v4.into()),
        v6: None,
        names: Vec::new(),
        serving: true,
    }
}

fn attachment(network: u8, v4: [u8; 4]) -> Attachment {
    Attachment { network: id(1000 + u128::from(network)), v4: Some(v4.into()), v6: None }
}

async fn connect(
    host: &Host,
    name: &str,
    attachment: Attachment,
    mesh: Option<Attachment>,
) -> Result<File> {
    let wanted = ContainerNetwork {
        id: name.into(),
        hostname: name.into(),
        attachments: vec![attachment],
        mesh,
        ..ContainerNetwork::default()
    };
    open(&host.path.attach(&wanted).await?.netns)
}

/// A bridge and a VXLAN device in each host, made by hand: what answers at each end.
fn bridge(hosts: &[Host; 2]) -> Result<(File, File)> {
    let mut ends = Vec::new();
    for (number, host) in (1..).zip(hosts) {
        let other = 3 - number;
        let end = new_namespace()?;
        pair(&host.namespace, "vb", &end, "eth0")?;
        for line in [
            "ip link add bx type bridge".to_owned(),
            format!(
                "ip link add vxb type vxlan id 77 dstport 4790 local 192.0.2.{number} \
                 remote 192.0.2.{other}"
            ),
            "ip link set vxb mtu 1450 master bx up".to_owned(),
            "ip link set vb master bx up".to_owned(),
            "ip link set bx up".to_owned(),
        ] {
            run_in(&host.namespace, &line)?;
        }
        run_in(&end, &format!("ip addr add 10.77.0.{number}/24 dev eth0"))?;
        run_in(&end, "ip link set eth0 mtu 1450 up")?;
        ends.push(end);
    }
    let far = ends.pop().context("two ends")?;
    Ok((ends.pop().context("two ends")?, far))
}

/// A namespace behind a host, reached by a route.
fn route(host: &Host, client: &File) -> Result<File> {
    let end = new_namespace()?;
    pair(&host.namespace, "vr", &end, "eth0")?;
    run_in(&host.namespace, "ip addr add 10.78.0.1/24 dev vr")?;
    run_in(&host.namespace, "ip link set vr up")?;
    run_in(&end, "ip addr add 10.78.0.2/24 dev eth0")?;
    run_in(&end, "ip link set eth0 up")?;
    run_in(&end, "ip route add default via 10.78.0.1")?;
    run_in(client, &format!("ip route add 10.78.0.0/24 via {}", host_address(host.number)))?;
    Ok(end)
}

/// What other meshes do: the far end sees the node, and the node what the client says.
fn hide(host: &Host) -> Result<()> {
    for line in [
        "ip addr add 10.77.0.101/24 dev bx".to_owned(),
        "sysctl -q -w net.ipv4.ip_forward=1".to_owned(),
        "nft add table ip hidden".to_owned(),
        "nft add chain ip hidden pre { type nat hook prerouting priority -101 ; }".to_owned(),
        "nft add chain ip hidden post { type nat hook postrouting priority 101 ; }".to_owned(),
        format!("nft add rule ip hidden pre tcp dport {HIDDEN} dnat to 10.77.0.2:{PORT}"),
        "nft add rule ip hidden post oifname bx masquerade".to_owned(),
    ] {
        run_in(&host.namespace, &line)?;
    }
    Ok(())
}

/// Answers every connection: a short text, or as many bytes as it is asked for.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(namespace: &File) -> Result<Self> {
        let listener = enter(namespace, || Ok(TcpListener::bind(("0.0.0.0", PORT))?))?;
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !flag.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else { continue };
                // A peer that goes away is not the server's matter.
                let _ = serve(&mut stream);
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    /// The thread ends with the program: it waits for a connection that does not come.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take());
    }
}

fn serve(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut asked = [0; 8];
    stream.read_exact(&mut asked)?;
    let mut left = u64::from_be_bytes(asked);
    if left == ECHO {
        stream.set_nodelay(true)?;
        let mut byte = [0];
        while stream.read_exact(&mut byte).is_ok() {
            stream.write_all(&byte)?;
        }
        return Ok(());
    }
    let chunk = vec![b'x'; CHUNK];
    while left > 0 {
        let count = left.min(CHUNK as u64) as usize;
        stream.write_all(&chunk[..count])?;
        left -= count as u64;
    }
    Ok(())
}

fn fetch(to: SocketAddr, bytes: u64) -> Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(&bytes.to_be_bytes())?;
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        match stream.read(&mut buffer)? {
            0 => anyhow::bail!("{to} stopped {left} bytes before the end"),
            count => left -= count as u64,
        }
    }
    // Ends with a reset: a port that waits for late packets would be in the way of a later one.
    setsockopt(&stream, Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    Ok(())
}

/// One connection after another, for a while.
pub(super) fn microseconds_per_connection(line: &Line) -> Result<f64> {
    let to = SocketAddr::from((line.to, line.port));
    enter(&line.from, move || {
        for _ in 0..WARM_UP {
            fetch(to, ANSWER)?;
        }
        let (begin, mut count) = (Instant::now(), 0u32);
        while begin.elapsed() < MEASURED {
            fetch(to, ANSWER)?;
            count += 1;
        }
        Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(count))
    })
    .with_context(|| format!("{}:{}", line.to, line.port))
}

/// Over one open connection, there and back.
pub(super) fn microseconds_per_round_trip(line: &Line) -> Result<f64> {
    let to = SocketAddr::from((line.to, line.port));
    enter(&line.from, move || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&ECHO.to_be_bytes())?;
        let (mut begin, mut count, mut byte) = (Instant::now(), 0u32, [0]);
        while begin.elapsed() < MEASURED {
            stream.write_all(b"?")?;
            stream.read_exact(&mut byte)?;
            count += 1;
            if count == WARM_UP {
                begin = Instant::now();
            }
        }
        Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(count - WARM_UP))
    })
    .with_context(|| format!("{}:{}", line.to, line.port))
}

pub(super) fn milliseconds_per_gibibyte(line: &Line) -> Result<f64> {
    let to = SocketAddr::from((line.to, line.port));
    enter(&line.from, move || {
        fetch(to, GIBIBYTE / 16)?;
        let begin = Instant::now();
        fetch(to, GIBIBYTE)?;
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    })
}

const PORT: u16 = 80;
const PUBLISHED: u16 = 8080;
const HIDDEN: u16 = 8090;
/// A network with two tasks and nothing else.
const PLAIN: u8 = 2;
/// Asks for every byte back, until the connection ends.
const ECHO: u64 = u64::MAX;
const ANSWER: u64 = 70;
const GIBIBYTE: u64 = 1 << 30;
const CHUNK: usize = 128 * 1024;
const WARM_UP: u32 = 50;
const MEASURED: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_secs(5);
