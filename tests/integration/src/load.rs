//! A steady stream of numbered datagrams from one container to another.
//!
//! Owns: its rate, and which of them arrived. Does not know: what happens to the network meanwhile.
//! Invariant: each number is sent once and counted once, however often it arrives; it goes on until
//! it is ended.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};

use crate::traffic::in_namespace;

/// The stream, while it goes on.
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    sender: JoinHandle<Result<()>>,
    receiver: JoinHandle<Result<Arrived>>,
}

/// What became of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    pub sent: u64,
    pub received: u64,
    /// The longest time in which nothing came.
    pub gap: Duration,
}

impl Load {
    /// Begins to send `rate` datagrams of `bytes` bytes a second from the namespace `from` to `to`,
    /// an address in the namespace `at`.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub fn begin(from: &Path, at: &Path, to: SocketAddr, rate: u32, bytes: usize) -> Result<Self> {
        let ear = in_namespace(at, move || Ok(UdpSocket::bind(to)?))?;
        ear.set_read_timeout(Some(QUIET))?;
        setsockopt(&ear, sockopt::RcvBufForce, &BUFFER)?;
        let mouth = in_namespace(from, || Ok(UdpSocket::bind("0.0.0.0:0")?))?;
        mouth.connect(to)?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let (ended, count) = (Arc::clone(&stop), Arc::clone(&sent));
        let sender = std::thread::spawn(move || send(&mouth, rate, bytes, &ended, &count));
        let ended = Arc::clone(&stop);
        let receiver = std::thread::spawn(move || receive(&ear, &ended));
        Ok(Self { stop, sent, sender, receiver })
    }

    /// How many were sent by now.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends it; what is under way is waited for.
    ///
    /// # Errors
    /// When a socket failed.
    pub fn end(self) -> Result<Arrived> {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().map_err(|_| anyhow!("the sender panicked"))??;
        let arrived = self.receiver.join().map_err(|_| anyhow!("the receiver panicked"))??;
        Ok(Arrived { sent: self.sent.load(Ordering::Relaxed), ..arrived })
    }
}

fn send(
    socket: &UdpSocket,
    rate: u32,
    bytes: usize,
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> Result<()> {
    let (begun, mut packet, mut number) = (Instant::now(), vec![0; bytes.max(8)], 0_u64);
    while !stop.load(Ordering::Relaxed) {
        let due = (begun.elapsed().as_secs_f64() * f64::from(rate)) as u64;
        while number < due {
            packet[..8].copy_from_slice(&number.to_be_bytes());
            // A refusal of the one before is told here, and none of it is wanted.
            match socket.send(&packet) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => continue,
                result => drop(result?),
            }
            number += 1;
            sent.store(number, Ordering::Relaxed);
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}

fn receive(socket: &UdpSocket, stop: &AtomicBool) -> Result<Arrived> {
    let (mut seen, mut received): (Vec<u64>, u64) = (Vec::new(), 0);
    let (mut last, mut gap, mut buffer) = (None::<Instant>, Duration::ZERO, [0; 2_048]);
    loop {
        match socket.recv(&mut buffer) {
            Ok(count) if count >= 8 => {
                let now = Instant::now();
                gap = gap.max(last.replace(now).map_or(Duration::ZERO, |last| now - last));
                let mut number = [0; 8];
                number.copy_from_slice(&buffer[..8]);
                received += u64::from(mark(&mut seen, u64::from_be_bytes(number)));
            }
            Ok(_) => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(Arrived { sent: 0, received, gap });
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Whether a number is new.
fn mark(seen: &mut Vec<u64>, number: u64) -> bool {
    let (word, bit) = ((number / 64) as usize, 1 << (number % 64));
    if seen.len() <= word {
        seen.resize(word + 1, 0);
    }
    let is_new = seen[word] & bit == 0;
    seen[word] |= bit;
    is_new
}

const TICK: Duration = Duration::from_millis(1);
/// As long as nothing comes, for the last ones to arrive.
const QUIET: Duration = Duration::from_millis(500);
const BUFFER: usize = 16 << 20;
