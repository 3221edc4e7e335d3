//! What clients and servers see of each other: connections made inside network namespaces.
//!
//! Owns: running code in a namespace, asking `whoami` over TCP and UDP, asking a container's
//! resolver. Does not know: what should be seen.
//! Invariant: code in a namespace runs in a thread of its own, which ends with it.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns};

use crate::command::{Answer, run};
use crate::fixture::Task;
use crate::host::Host;
use crate::lab::{Lab, v6_address};
use crate::wait::{SHORT, wait_for};

/// Who answered, and whom it saw.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    pub task: String,
    pub node: String,
    pub client: SocketAddr,
}

/// Runs `work` in the network namespace at `path`.
///
/// # Errors
/// When the namespace cannot be entered, or what `work` says.
pub fn in_namespace<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let thread = std::thread::spawn(move || {
        setns(&file, CloneFlags::CLONE_NEWNET)?;
        work()
    });
    thread.join().map_err(|_| anyhow!("the thread in {} panicked", path.display()))?
}

/// Asks `whoami` over TCP, in a connection of its own.
///
/// # Errors
/// When it does not answer in time.
pub fn ask_tcp(to: SocketAddr) -> Result<Seen> {
    ask_with_word(to, "whoami")
}

/// The same, with a word in the question that a capture can look for.
///
/// # Errors
/// When it does not answer in time.
pub fn ask_with_word(to: SocketAddr, word: &str) -> Result<Seen> {
    let mut stream = TcpStream::connect_timeout(&to, LIMIT).with_context(|| to.to_string())?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let question = format!("GET / HTTP/1.1\r\nHost: {word}\r\nConnection: close\r\n\r\n");
    stream.write_all(question.as_bytes())?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (_, body) = text.split_once("\r\n\r\n").with_context(|| format!("answer `{text}`"))?;
    parse(body)
}

/// Asks `whoami` over UDP, from a socket of its own.
///
/// # Errors
/// When it does not answer in time.
pub fn ask_udp(to: SocketAddr) -> Result<Seen> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(LIMIT))?;
    socket.send(b"who?")?;
    let mut buffer = [0; 2_048];
    let length = socket.recv(&mut buffer).with_context(|| to.to_string())?;
    parse(std::str::from_utf8(&buffer[..length])?)
}

/// Whether a TCP connection is made within a second.
#[must_use]
pub fn connects_to(to: SocketAddr) -> bool {
    TcpStream::connect_timeout(&to, Duration::from_secs(1)).is_ok()
}

/// Whether a datagram is turned back.
#[must_use]
pub fn udp_refused(to: SocketAddr) -> bool {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let sent = || {
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.send(b"?")?;
        socket.recv(&mut [0; 64])
    };
    let said = [ErrorKind::ConnectionRefused, ErrorKind::HostUnreachable];
    sent().is_err_and(|error| said.contains(&error.kind()))
}

fn parse(body: &str) -> Result<Seen> {
    let text = |key: &str| {
        let value = body.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "));
        value.map(str::to_owned).with_context(|| format!("no {key} in the answer `{body}`"))
    };
    Ok(Seen { task: text("Task")?, node: text("Node")?, client: text("Client")?.parse()? })
}

impl Host {
    /// The host's own network namespace.
    #[must_use]
    pub fn netns(&self) -> PathBuf {
        Path::new("/run/netns").join(self.namespace())
    }

    /// A port of this host, on its first address of each family.
    ///
    /// # Panics
    /// Never: the addresses are the lab's own.
    #[must_use]
    pub fn port_v4(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.address().parse().expect("an address"), port)
    }

    /// The same by IPv6.
    ///
    /// # Panics
    /// Never: the addresses are the lab's own.
    #[must_use]
    pub fn port_v6(&self, port: u16) -> SocketAddr {
        let index = self.address().rsplit('.').next().and_then(|text| text.parse().ok());
        let address = v6_address(index.expect("the last number of an address"));
        SocketAddr::new(address.parse().expect("an address"), port)
    }

    /// The network namespace of a task's container on this host.
    #[must_use]
    pub fn task_netns(&self, task: &str) -> PathBuf {
        self.run_dir().join("netns").join(task)
    }

    /// Asks `whoami` over TCP from this host.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn ask(&self, to: SocketAddr) -> Result<Seen> {
        in_namespace(&self.netns(), move || ask_tcp(to))
    }

    /// Asks the resolver of a task's container; gives the addresses, sorted.
    ///
    /// # Errors
    /// When there is none.
    pub fn resolve(&self, task: &str, kind: &str, name: &str) -> Result<Vec<IpAddr>> {
        let answer = self.inside_task(
            task,
            "busybox",
            &["nslookup", &format!("-type={kind}"), name, "127.0.0.11"],
        )?;
        let text = answer.ok()?;
        // The first block names the server.
        let answers = text.split_once("\n\n").map_or("", |(_, answers)| answers);
        let mut found: Vec<IpAddr> = answers
            .lines()
            .filter_map(|line| line.strip_prefix("Address: ")?.trim().parse().ok())
            .collect();
        found.sort();
        if found.is_empty() {
            bail!("no address of {name}: {text}");
        }
        Ok(found)
    }

    /// The first address of a name, as a task's container on this host is told; waits for it.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn address_of(&self, task: &Task, name: &str) -> Result<IpAddr> {
        wait_for(name, SHORT, || Ok(self.resolve(&task.id, "a", name)?.first().copied()))
    }

    /// Runs a program in the network namespace of a task's container.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn inside_task(&self, task: &str, program: &str, args: &[&str]) -> Result<Answer> {
        let net = format!("--net={}", self.task_netns(task).display());
        run(Command::new("nsenter").arg(net).arg(program).args(args), LIMIT * 4)
    }
}

impl Lab {
    /// The host that a task is on.
    ///
    /// # Panics
    /// When it is on none of this lab.
    #[must_use]
    pub fn host_of(&self, task: &Task) -> &Host {
        let host = self.hosts().iter().find(|host| host.name() == task.node);
        host.expect("a host of this lab")
    }

    /// Asks `whoami` over TCP from within a task's container.
    ///
    /// # Errors
    /// When it does not answer in time.
    pub fn ask_from(&self, task: &Task, to: SocketAddr) -> Result<Seen> {
        in_namespace(&self.host_of(task).task_netns(&task.id), move || ask_tcp(to))
    }
}

/// Longer than a retransmitted SYN, shorter than a test's patience.
const LIMIT: Duration = Duration::from_secs(3);
