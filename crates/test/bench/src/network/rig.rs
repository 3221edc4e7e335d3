//! Hosts on one wire, in network namespaces.
//!
//! Owns: their making. Does not know: what is measured.
//! Invariant: a namespace goes with the last descriptor of it; nothing is left on the host.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};
use base::Id;
use network::{DataPath, EncryptionMode, NetworkOptions};
use nix::sched::{CloneFlags, setns, unshare};
use types::{DirectoryUpdate, NetworkDriver, NetworkPart, OwnEncryption, OwnPart, PeerPart};

/// The wire, 192.0.2.0/24.
pub(crate) struct Rig {
    pub(super) wire: File,
}

/// One host with a data path of ours.
pub(crate) struct Host {
    pub(super) namespace: File,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) path: DataPath,
    pub(super) number: u32,
}

impl Rig {
    pub(crate) fn new() -> Result<Self> {
        let wire = new_namespace()?;
        run_in(&wire, "ip link add br0 type bridge")?;
        run_in(&wire, "ip link set br0 up")?;
        Ok(Self { wire })
    }

    /// A namespace that is 192.0.2.NUMBER.
    pub(super) fn plug(&self, number: u32) -> Result<File> {
        let namespace = new_namespace()?;
        pair(&self.wire, &format!("p{number}"), &namespace, "eth0")?;
        run_in(&self.wire, &format!("ip link set p{number} master br0 up"))?;
        run_in(&namespace, &format!("ip addr add 192.0.2.{number}/24 dev eth0"))?;
        run_in(&namespace, "ip link set eth0 up")?;
        Ok(namespace)
    }
}

impl Host {
    pub(crate) async fn open(rig: &Rig, number: u32) -> Result<Self> {
        let namespace = rig.plug(number)?;
        // As `/run` is: in memory.
        let in_memory = Path::new("/dev/shm");
        let dir = match in_memory.is_dir() {
            true => tempfile::tempdir_in(in_memory)?,
            false => tempfile::tempdir()?,
        };
        let options = NetworkOptions {
            run_dir: dir.path().to_owned(),
            instance_id: format!("bench{number}"),
            subnet: None,
            address: Some(host_address(number)),
            encryption: EncryptionMode::Auto,
            resolver_port: netd::RESOLVER_PORT,
        };
        let back = File::open(OWN_NAMESPACE)?;
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        let path = DataPath::open(options).await;
        setns(&back, CloneFlags::CLONE_NEWNET)?;
        Ok(Self { namespace, dir, path: path?, number })
    }

    /// A first directory, with these networks and hosts 1 and 2 on them.
    pub(crate) fn told(&self, networks: &[NetworkPart]) -> DirectoryUpdate {
        let others = [1, 2].into_iter().filter(|number| *number != self.number);
        let peers = networks.iter().flat_map(|part| {
            others.clone().map(|number| PeerPart {
                network: part.id,
                node: id(u128::from(number)),
                name: format!("host{number}"),
                number,
                address: host_address(number),
                mtu: 0,
                encryption: None,
            })
        });
        DirectoryUpdate {
            full: true,
            own: Some(OwnPart {
                node: id(u128::from(self.number)),
                number: self.number,
                data_path_port: 4789,
                encryption: OwnEncryption::default(),
            }),
            networks: networks.to_vec(),
            peers: peers.collect(),
            ..DirectoryUpdate::default()
        }
    }
}

pub(crate) fn network_part(number: u8) -> NetworkPart {
    let ingress = number == INGRESS;
    let net = if ingress { "10.255.0.0/16" } else { "10.0.0.0/8" };
    let gateway = if ingress { [10, 255, 0, 1] } else { [10, 0, 0, 1] };
    NetworkPart {
        id: id(1000 + u128::from(number)),
        name: format!("net{number}"),
        driver: NetworkDriver::Overlay,
        vni: 4096 + u32::from(number),
        mtu: 1450,
        ingress,
        internal: false,
        encrypted: false,
        subnets: net.parse().map(|net| vec![(net, gateway.into())]).unwrap_or_default(),
        options: Default::default(),
        config_from: String::new(),
    }
}

pub(super) fn host_address(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(address(192, 0, 2, 0) + number).into()
}

pub(crate) const fn address(a: u8, b: u8, c: u8, d: u8) -> u32 {
    u32::from_be_bytes([a, b, c, d])
}

/// Of a number that is not zero.
pub(crate) fn id<T: From<Id>>(number: u128) -> T {
    T::from(Id::from_u128(number.max(1)).unwrap_or_else(|| unreachable!("it is not zero")))
}

pub(crate) fn new_namespace() -> Result<File> {
    in_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("a network namespace needs root")?;
        run("ip link set lo up")?;
        Ok(File::open(OWN_NAMESPACE)?)
    })
}

/// Names a namespace to other programs, which open it as a file of ours, while this one lives.
pub(crate) fn path_of(namespace: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

/// Two ends of a cable.
pub(super) fn pair(one: &File, name: &str, other: &File, far: &str) -> Result<()> {
    let path = path_of(other);
    run_in(one, &format!("ip link add {name} type veth peer name {far} netns {path}"))
}

pub(crate) fn run_in(namespace: &File, line: &str) -> Result<()> {
    let line = line.to_owned();
    enter(namespace, move || run(&line))
}

pub(crate) fn enter<T: Send + 'static>(
    namespace: &File,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let namespace = namespace.try_clone()?;
    in_thread(move || {
        setns(&namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    })
}

fn in_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let joined = std::thread::spawn(work).join();
    joined.map_err(|_| anyhow::anyhow!("a thread in a namespace panicked"))?
}

fn run(line: &str) -> Result<()> {
    let mut words = line.split(' ');
    let program = words.next().context("an empty command")?;
    let output = Command::new(program).args(words).output().with_context(|| line.to_owned())?;
    if !output.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

pub(crate) fn open(path: &Path) -> Result<File> {
    File::open(path).with_context(|| format!("cannot open {}", path.display()))
}

pub(super) const INGRESS: u8 = 9;
const OWN_NAMESPACE: &str = "/proc/thread-self/ns/net";
