//! Sockets and threads.
//!
//! Owns: both sockets, the connections, and the effects that answers ask for.
//! Does not know: what is answered to what.
//! Invariant: at most [`CONNECTIONS_MAX`] threads, [`HEAD_BYTES_MAX`] bytes of a request, and
//! [`TIME_LIMIT`] for each direction; beyond that a caller is turned away, never waited for.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::answer::{Answer, Effect, Identity, decide};

/// Both sockets on one port.
pub(crate) struct Server {
    listener: TcpListener,
    udp: UdpSocket,
    shared: Arc<Shared>,
}

struct Shared {
    identity: Identity,
    healthy: AtomicBool,
    connections: AtomicUsize,
    memory: Mutex<Vec<Vec<u8>>>,
}

impl Server {
    /// On all addresses, IPv6 too where the machine has it. Port 0 chooses one.
    pub(crate) fn bind(port: u16, identity: Identity) -> io::Result<Self> {
        let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let listener = TcpListener::bind(v6).or_else(|_| TcpListener::bind(v4))?;
        let udp = UdpSocket::bind(listener.local_addr()?)?;
        let shared = Shared {
            identity,
            healthy: AtomicBool::new(true),
            connections: AtomicUsize::new(0),
            memory: Mutex::default(),
        };
        Ok(Self { listener, udp, shared: Arc::new(shared) })
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().map_or(0, |address| address.port())
    }

    /// Serves for ever.
    pub(crate) fn run(self) {
        let shared = Arc::clone(&self.shared);
        let udp = self.udp;
        std::thread::spawn(move || serve_udp(&udp, &shared));
        loop {
            let Ok((stream, client)) = self.listener.accept() else {
                // Out of descriptors, most likely; others will be closed.
                std::thread::sleep(Duration::from_millis(10));
                continue;
            };
            let Some(slot) = Slot::take(&self.shared) else {
                turn_away(&stream);
                continue;
            };
            let client = plain(client);
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            // Without a thread the connection is closed by being dropped.
            let _ = thread.spawn(move || serve_connection(stream, client, &slot.0));
        }
    }
}

/// One of the places for connections, given back when dropped.
struct Slot(Arc<Shared>);

impl Slot {
    fn take(shared: &Arc<Shared>) -> Option<Self> {
        let before = shared.connections.fetch_add(1, Ordering::SeqCst);
        let slot = Self(Arc::clone(shared));
        (before < CONNECTIONS_MAX).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::SeqCst);
    }
}

fn turn_away(stream: &TcpStream) {
    let _ = stream.set_nonblocking(true);
    let mut stream = stream;
    let _ =
        stream.write_all(b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}

fn serve_udp(udp: &UdpSocket, shared: &Shared) {
    let mut buffer = [0; 512];
    loop {
        let Ok((_, client)) = udp.recv_from(&mut buffer) else { continue };
        let text = shared.identity.text(plain(client));
        println!("UDP from {}", plain(client));
        let _ = udp.send_to(text.as_bytes(), client);
    }
}

fn serve_connection(mut stream: TcpStream, client: SocketAddr, shared: &Shared) {
    let request = stream
        .set_read_timeout(Some(TIME_LIMIT))
        .and_then(|()| stream.set_write_timeout(Some(TIME_LIMIT)))
        .and_then(|()| read_head(&mut stream));
    let Ok(head) = request else { return };
    let (method, target, answer) = match parse_head(&head) {
        Some((method, target)) => {
            let healthy = shared.healthy.load(Ordering::SeqCst);
            (method, target, decide(target, &shared.identity, client, healthy))
        }
        None => ("?", "?", bad_request()),
    };
    println!("{method} {} {} from {client}", printable(target), answer.status);
    let effect = answer.effect.clone();
    perform_before(&effect, shared);
    let _ = send(&mut stream, &answer, method == "HEAD");
    if let Effect::Exit(code) = effect {
        // The answer is with the kernel; give the peer a moment to take it.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read(&mut [0]);
        std::process::exit(code);
    }
}

/// What has happened when the answer arrives.
fn perform_before(effect: &Effect, shared: &Shared) {
    match effect {
        Effect::None | Effect::Exit(_) => {}
        Effect::SetHealthy(healthy) => shared.healthy.store(*healthy, Ordering::SeqCst),
        Effect::Allocate(bytes) => {
            // Ones, because pages of zeros would not be there.
            let memory = vec![1; *bytes];
            shared.memory.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
        }
        Effect::Log { lines, text } => {
            let mut out = io::BufWriter::new(io::stdout().lock());
            for number in 1..=*lines {
                // Nobody reads: then nobody misses the rest.
                if writeln!(out, "{text} {number}").is_err() {
                    break;
                }
            }
        }
    }
}

fn bad_request() -> Answer {
    let body = "not an HTTP request\n".to_owned();
    Answer { status: 400, json: false, body, effect: Effect::None }
}

/// Up to the empty line, or as far as it goes.
fn read_head(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + TIME_LIMIT;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX || Instant::now() > deadline {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match stream.read(&mut buffer)? {
            0 if head.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            0 => break,
            count => head.extend_from_slice(&buffer[..count]),
        }
    }
    Ok(head)
}

/// Method and target of the first line.
fn parse_head(head: &[u8]) -> Option<(&str, &str)> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let good = matches!(method, "GET" | "HEAD" | "POST" | "PUT")
        && target.starts_with('/')
        && version.starts_with("HTTP/1.");
    good.then_some((method, target))
}

fn send(stream: &mut TcpStream, answer: &Answer, head_only: bool) -> io::Result<()> {
    let reason = match answer.status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        _ => "Service Unavailable",
    };
    let kind = if answer.json { "application/json" } else { "text/plain; charset=utf-8" };
    let mut text = format!(
        "HTTP/1.1 {} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\
         Cache-Control: no-store\r\nConnection: close\r\n\r\n",
        answer.status,
        answer.body.len()
    );
    if !head_only {
        text.push_str(&answer.body);
    }
    stream.write_all(text.as_bytes())
}

/// An IPv4 client of an IPv6 socket, as IPv4.
fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// One line, whatever the client sent.
fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect()
}

const CONNECTIONS_MAX: usize = 256;
const HEAD_BYTES_MAX: usize = 8 * 1024;
const TIME_LIMIT: Duration = Duration::from_secs(10);
const STACK_BYTES: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> SocketAddr {
        let identity = Identity { hostname: "h".into(), task: "t".into(), node: "n".into() };
        let server = Server::bind(0, identity).unwrap();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, server.port()));
        std::thread::spawn(move || server.run());
        address
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    }

    #[test]
    fn http_and_udp_answer_on_one_port() {
        let address = server();
        let text = ask(address, "GET / HTTP/1.1\r\nHost: x\r\n\r\n");
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        assert!(text.contains("\r\n\r\nHostname: h\nTask: t\nNode: n\nClient: 127.0.0.1:"));
        let head = ask(address, "HEAD /json HTTP/1.1\r\n\r\n");
        assert!(head.ends_with("\r\n\r\n") && head.contains("application/json"), "{head}");
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        udp.set_read_timeout(Some(TIME_LIMIT)).unwrap();
        udp.send_to(b"?", address).unwrap();
        let mut buffer = [0; 512];
        let (count, _) = udp.recv_from(&mut buffer).unwrap();
        assert!(buffer[..count].starts_with(b"Hostname: h\n"));
    }

    #[test]
    fn health_changes_for_everybody() {
        let address = server();
        let status = |path: &str| ask(address, &format!("GET {path} HTTP/1.1\r\n\r\n"));
        assert!(status("/health").starts_with("HTTP/1.1 200"));
        assert!(status("/unhealthy").starts_with("HTTP/1.1 200"));
        assert!(status("/health").starts_with("HTTP/1.1 503"));
        assert!(status("/healthy").starts_with("HTTP/1.1 200"));
        assert!(status("/health").starts_with("HTTP/1.1 200"));
    }

    #[test]
    fn bad_callers_do_not_harm_good_ones() {
        let address = server();
        assert!(ask(address, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
        assert_eq!(ask(address, &"x".repeat(HEAD_BYTES_MAX * 4)), "");
        assert_eq!(ask(address, ""), "");
        let silent: Vec<TcpStream> =
            (0..CONNECTIONS_MAX * 2).map(|_| TcpStream::connect(address).unwrap()).collect();
        let busy = ask(address, "GET / HTTP/1.1\r\n\r\n");
        assert!(busy.is_empty() || busy.starts_with("HTTP/1.1 503"), "{busy}");
        drop(silent);
        let deadline = Instant::now() + TIME_LIMIT;
        while !ask(address, "GET / HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200") {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
