//! The peer of our log: etcd, three members over loopback, each with its own directory and fsync.
//!
//! Owns: starting them privately, and writing through their JSON gateway.
//! Does not know: our store. Invariant: measured in the same run, with as large values.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::raft::{Commits, PROPOSAL_BYTES};

const MEMBERS: usize = 3;
const START_MAX: Duration = Duration::from_secs(20);

/// Members that end with this.
struct Cluster {
    children: Vec<Child>,
    clients: Vec<u16>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in &mut self.children {
            // A member that has ended already needs no signal.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Whether the package `etcd-server` is there.
#[must_use]
pub fn is_installed() -> bool {
    let found = Command::new("etcd").arg("--version").stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// The same load as [`crate::raft::commits`].
///
/// # Errors
/// When etcd does not start, or a write fails.
pub async fn commits(dir: &Path, clients: usize, time: Duration) -> Result<Commits> {
    let cluster = start(dir)?;
    let port = leader(&cluster).await?;
    let until = Instant::now() + time;
    let begun = Instant::now();
    let tasks: Vec<_> =
        (0..clients).map(|client| tokio::spawn(write_until(port, client, until))).collect();
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await??);
    }
    let elapsed = begun.elapsed();
    waits.sort_unstable();
    let at = |share: f64| waits.get((waits.len() as f64 * share) as usize).copied();
    Ok(Commits {
        clients,
        commits: waits.len() as u64,
        per_second: waits.len() as f64 / elapsed.as_secs_f64(),
        p50: at(0.5).context("nothing was written")?,
        p99: at(0.99).context("nothing was written")?,
    })
}

fn start(dir: &Path) -> Result<Cluster> {
    let free =
        || -> Result<u16> { Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()) };
    let ports: Vec<(u16, u16)> =
        (0..MEMBERS).map(|_| Ok((free()?, free()?))).collect::<Result<_>>()?;
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let members = ports.iter().enumerate().map(|(n, (_, peer))| format!("m{n}={}", url(*peer)));
    let initial = members.collect::<Vec<_>>().join(",");
    let mut cluster = Cluster { children: Vec::new(), clients: Vec::new() };
    for (number, (client, peer)) in ports.iter().enumerate() {
        let child = Command::new("etcd")
            .args(["--name", &format!("m{number}"), "--log-level", "error"])
            .arg("--data-dir")
            .arg(dir.join(format!("etcd-{number}")))
            .args(["--listen-client-urls", &url(*client), "--advertise-client-urls", &url(*client)])
            .args(["--listen-peer-urls", &url(*peer), "--initial-advertise-peer-urls", &url(*peer)])
            .args(["--initial-cluster", &initial])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("etcd cannot be started")?;
        cluster.children.push(child);
        cluster.clients.push(*client);
    }
    Ok(cluster)
}

/// The client port of the member that leads.
async fn leader(cluster: &Cluster) -> Result<u16> {
    let deadline = Instant::now() + START_MAX;
    while Instant::now() < deadline {
        for port in &cluster.clients {
            let Ok(mut client) = Client::connect(*port).await else { continue };
            let Ok(answer) = client.post("/v3/maintenance/status", "{}").await else { continue };
            let status: serde_json::Value = serde_json::from_slice(&answer)?;
            let leads = status["leader"].as_str().is_some_and(|id| id != "0")
                && status["leader"] == status["header"]["member_id"];
            if leads {
                return Ok(*port);
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("etcd has no leader within {START_MAX:?}")
}

async fn write_until(port: u16, client: usize, until: Instant) -> Result<Vec<Duration>> {
    let mut connection = Client::connect(port).await?;
    // Base64 of the key and of as many bytes as our proposals have.
    let value = "eHh4".repeat(PROPOSAL_BYTES / 3);
    let body = format!("{{\"key\":\"{}\",\"value\":\"{value}\"}}", format_key(client));
    let mut waits = Vec::new();
    while Instant::now() < until {
        let begun = Instant::now();
        connection.post("/v3/kv/put", &body).await?;
        waits.push(begun.elapsed());
    }
    Ok(waits)
}

/// Four letters are base64 of three bytes.
fn format_key(client: usize) -> String {
    let letter = |n: usize| char::from(b'a' + (n % 26) as u8);
    [client / 676, client / 26, client, 0].map(letter).iter().collect()
}

/// One connection, kept open.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    async fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    async fn post(&mut self, path: &str, body: &str) -> Result<Vec<u8>> {
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: etcd\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.get_mut().write_all(request.as_bytes()).await?;
        let (mut line, mut length) = (String::new(), 0);
        self.stream.read_line(&mut line).await?;
        if !line.starts_with("HTTP/1.1 200") {
            bail!("etcd answers {line}");
        }
        loop {
            line.clear();
            self.stream.read_line(&mut line).await?;
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
        }
        let mut answer = vec![0; length];
        self.stream.read_exact(&mut answer).await?;
        Ok(answer)
    }
}
