//! One node's daemon, a process of its own.
//!
//! Owns: starting ours and the peer's, giving them their peers, and what they cost.
//! Does not know: what flows through them. Invariant: the process ends with its [`Node`].

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use tunnel::{
    Engine, EngineOptions, Lifetime, Offload, PeerConfig, PrivateKey, PublicKey, Socket, Tun,
};

use super::await_that;
use super::space::Space;

/// Whose daemon.
#[derive(Debug, Clone)]
pub(super) enum Kind {
    Ours,
    Peer(PathBuf),
}

/// A daemon that runs.
pub(super) struct Node {
    child: Child,
    kind: Kind,
    pub(super) link: String,
    number: u8,
    generation: u8,
    /// Made from both numbers.
    key: PrivateKey,
}

impl Node {
    /// In `host`, with its device in `inside`; of the peer's the two must be one. All addresses of
    /// the tunnel are led to it.
    pub(super) fn start(kind: &Kind, host: &Space, inside: &Space, number: u8) -> Result<Self> {
        let node = Self::start_generation(kind, host, inside, number, 0)?;
        inside.run(&format!("ip addr add {}/32 dev lo", inner(number)))?;
        inside.run(&format!(
            "ip route add 10.99.0.0/24 dev {} src {}",
            node.link,
            inner(number)
        ))?;
        Ok(node)
    }

    /// The same with another key, beside what is there; nothing is led to it.
    pub(super) fn start_generation(
        kind: &Kind,
        host: &Space,
        inside: &Space,
        number: u8,
        generation: u8,
    ) -> Result<Self> {
        let link = format!("tb{number}g{generation}x{}", std::process::id());
        let mut command = match kind {
            Kind::Ours => {
                let mut command = Command::new(std::env::current_exe()?);
                let node = format!("{number},{generation},{link},{}", inside.path());
                command.args(["--tunnel-node", &node]);
                command.stdin(Stdio::piped()).stdout(Stdio::piped());
                command
            }
            Kind::Peer(program) => {
                let mut command = Command::new(program);
                command.args(["--foreground", "--disable-drop-privileges", &link]);
                command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                command
            }
        };
        let child = host.enter(move || command.spawn().context("a daemon does not start"))?;
        let key = key(number, generation);
        let mut node = Self { child, kind: kind.clone(), link, number, generation, key };
        match kind {
            Kind::Ours => node.expect_line()?,
            Kind::Peer(_) => {
                let path = node.control();
                await_that("the peer's socket", || UnixStream::connect(&path).is_ok())?;
                let secret: String = node.key.to_bytes().iter().map(hex).collect();
                let port = port(generation);
                node.tell(&format!("private_key={secret}\nlisten_port={port}\n"))?;
            }
        }
        inside.run(&format!("ip link set {} mtu {MTU} txqueuelen 10000 up", node.link))?;
        Ok(node)
    }

    /// Makes another node its only peer.
    pub(super) fn add_peer(&mut self, other: u8) -> Result<()> {
        let public = key(other, self.generation).public();
        let endpoint = SocketAddr::from(([192, 0, 2, other], port(self.generation)));
        if let Kind::Peer(_) = self.kind {
            let public: String = public.as_bytes().iter().map(hex).collect();
            return self.tell(&format!(
                "public_key={public}\nendpoint={endpoint}\nallowed_ip={}/32\n",
                inner(other)
            ));
        }
        self.order(&format!("{public} {endpoint} {}\n\n", inner(other)))
    }

    /// Waits until packets can be sent to all peers at once; of ours only.
    pub(super) fn await_sessions(&mut self) -> Result<()> {
        self.order("sessions\n")
    }

    /// Peers of which it is not known where they are.
    pub(super) fn add_silent_peers(&mut self, count: usize) -> Result<()> {
        let line = |number: usize| {
            let mut key = [9; 32];
            // The lowest bits of the first byte are not used.
            key[1..9].copy_from_slice(&(number as u64).to_le_bytes());
            let public = PrivateKey::from_bytes(key).public();
            let address = Ipv4Addr::from_bits(u32::from(inner(0)) + 256 + number as u32);
            format!("{public} - {address}\n")
        };
        let lines: String = (0..count).map(line).collect();
        self.order(&format!("{lines}\n"))
    }

    /// Lines for our daemon, which answers when it has done what they say.
    fn order(&mut self, lines: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("the daemon has no input")?;
        input.write_all(lines.as_bytes())?;
        self.expect_line()
    }

    fn expect_line(&mut self) -> Result<()> {
        let output = self.child.stdout.as_mut().context("the daemon has no output")?;
        let mut line = String::new();
        BufReader::with_capacity(1, output).read_line(&mut line)?;
        if line.trim() != "done" {
            bail!("the daemon of node {} answered `{line}`", self.number);
        }
        Ok(())
    }

    fn control(&self) -> String {
        format!("/var/run/wireguard/{}.sock", self.link)
    }

    /// The cross-platform configuration protocol.
    fn tell(&self, lines: &str) -> Result<()> {
        let mut stream = UnixStream::connect(self.control())?;
        stream.write_all(format!("set=1\n{lines}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        if answer.trim() != "errno=0" {
            bail!("the peer's daemon refuses its configuration: {answer}");
        }
        Ok(())
    }

    /// Its own time and the kernel's in its name.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, rest) = text.rsplit_once(") ").context("no process state")?;
        let fields: Vec<&str> = rest.split(' ').collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
        let (user, system) = ticks(11).zip(ticks(12)).context("no times")?;
        Ok((user + system) / TICKS_PER_SECOND)
    }

    pub(super) fn memory_kib(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        number.and_then(|text| text.trim().parse().ok()).context("no resident memory")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(self.control());
    }
}

/// Our daemon: `NUMBER,GENERATION,LINK,NAMESPACE`; a line `KEY ENDPOINT ADDRESS` for each peer, an
/// empty one that makes those since the last the peers, and `sessions` to wait for theirs.
pub fn run(arguments: &str) -> Result<()> {
    let mut words = arguments.splitn(4, ',');
    let mut word = || words.next().context("NUMBER,GENERATION,LINK,NAMESPACE");
    let (number, generation) = (word()?.parse()?, word()?.parse()?);
    let (link, space) = (word()?.to_owned(), word()?.to_owned());
    let opened = std::thread::spawn(move || -> Result<Tun> {
        setns(std::fs::File::open(space)?, CloneFlags::CLONE_NEWNET)?;
        Ok(Tun::open(&link, Lifetime::Temporary, Offload::Tunnel)?)
    });
    let tun = opened.join().map_err(|_| anyhow::anyhow!("the device's thread panicked"))??;
    let socket = Socket::open(([0, 0, 0, 0], port(generation)).into())?;
    let options = EngineOptions { address: inner(number), handshakes_per_second: 2000 };
    let engine = Engine::start(&key(number, generation), tun, socket, options)?;
    println!("done");
    let mut peers = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line.is_empty() {
            engine.set_peers(&peers)?;
            println!("done");
            peers.clear();
            continue;
        }
        if line == "sessions" {
            let have_sessions = || engine.observe().peers.iter().all(|peer| peer.has_session);
            await_that("sessions with all peers", have_sessions)?;
            println!("done");
            continue;
        }
        peers.push(parse_peer(&line).with_context(|| format!("not a peer: `{line}`"))?);
    }
    Ok(())
}

fn parse_peer(line: &str) -> Option<PeerConfig> {
    let mut words = line.split(' ');
    let key: PublicKey = words.next()?.parse().ok()?;
    let endpoint = words.next()?.parse().ok();
    Some(PeerConfig { key, endpoint, address: words.next()?.parse().ok()?, keepalive: None })
}

fn key(number: u8, generation: u8) -> PrivateKey {
    let mut bytes = [number; 32];
    bytes[1] = generation;
    PrivateKey::from_bytes(bytes)
}

fn port(generation: u8) -> u16 {
    PORT + u16::from(generation)
}

fn hex(byte: &u8) -> String {
    format!("{byte:02x}")
}

/// A node's address inside the tunnel.
pub(super) fn inner(number: u8) -> Ipv4Addr {
    [10, 99, 0, number].into()
}

const PORT: u16 = 51_900;
pub(super) const MTU: u16 = 1440;
const TICKS_PER_SECOND: f64 = 100.0;
