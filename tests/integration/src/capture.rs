//! What passes between hosts, seen on every port of the switch.
//!
//! Owns: a packet socket in the switch's namespace, counting clear and encrypted datagrams, looking
//! for words.
//! Does not know: which of them should be there.
//! Invariant: it hears everything from when it was made until it is dropped: when the kernel says
//! that it was too slow, that is an error.

use std::collections::BTreeMap;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockProtocol, SockType, recvmsg,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::lab::Lab;
use crate::traffic::in_namespace;

/// An ear on the switch.
pub struct Capture {
    stop: Arc<AtomicBool>,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
    words: Vec<Vec<u8>>,
}

#[derive(Default)]
struct State {
    heard: Heard,
    failure: Option<String>,
}

/// What was heard. A frame counts once for each port that it passes.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    pub frames: usize,
    /// Datagrams from and to the ports of encrypted networks.
    pub encrypted: usize,
    /// VXLAN in clear, by network identifier.
    pub clear: BTreeMap<u32, usize>,
    /// Frames with each of the words, by the word's place; large frames are not looked through.
    pub with_word: Vec<usize>,
}

impl Capture {
    /// Begins to listen on every port of the switch, for frames with one of `words` among others.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn begin(lab: &Lab, words: &[&str]) -> Result<Self> {
        let socket = in_namespace(&lab.switch_netns(), open)?;
        let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        let state = Arc::new(Mutex::new(State::default()));
        let stop = Arc::new(AtomicBool::new(false));
        lock(&state).heard.with_word = vec![0; words.len()];
        let (into, stopped, sought) = (Arc::clone(&state), Arc::clone(&stop), words.clone());
        let thread = std::thread::spawn(move || {
            if let Err(error) = listen(&socket, &sought, &into, &stopped) {
                lock(&into).failure = Some(format!("{error:#}"));
            }
        });
        Ok(Self { stop, state, thread: Some(thread), words })
    }

    /// What was heard until now; what is under way is waited for.
    ///
    /// # Errors
    /// When something may not have been heard.
    pub fn heard(&self) -> Result<Heard> {
        let look = || -> Result<Heard> {
            let state = lock(&self.state);
            let failure = state.failure.as_deref();
            ensure!(failure.is_none(), "the capture ended: {}", failure.unwrap_or_default());
            Ok(state.heard.clone())
        };
        // Its own thread may be behind; a wire on which something is always said is never quiet.
        let (begun, mut before) = (Instant::now(), look()?);
        loop {
            std::thread::sleep(POLL * 2);
            let now = look()?;
            if now.frames == before.frames || begun.elapsed() > SETTLE_MAX {
                return Ok(now);
            }
            before = now;
        }
    }

    /// How often a word was heard.
    ///
    /// # Errors
    /// As [`Capture::heard`], or when it is none of those that are listened for.
    pub fn says(&self, word: &str) -> Result<usize> {
        let place = self.words.iter().position(|known| known == word.as_bytes());
        Ok(self.heard()?.with_word[place.context("a word that is listened for")?])
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.thread.take().map(JoinHandle::join));
    }
}

impl Heard {
    fn take(&mut self, frame: &[u8], words: &[Vec<u8>]) {
        self.frames += 1;
        if frame.len() <= QUESTION_MAX {
            for (count, word) in self.with_word.iter_mut().zip(words) {
                *count += usize::from(frame.windows(word.len()).any(|part| part == word));
            }
        }
        let Some(udp) = datagram(frame) else { return };
        let port = |at: usize| u16::from_be_bytes([udp[at], udp[at + 1]]);
        let ports = [port(0), port(2)];
        if ports.iter().any(|port| TUNNEL_PORTS.contains(port)) {
            self.encrypted += 1;
        } else if ports[1] == VXLAN_PORT && udp.len() >= 16 {
            let vni = u32::from_be_bytes([0, udp[12], udp[13], udp[14]]);
            *self.clear.entry(vni).or_default() += 1;
        }
    }
}

/// From the UDP header on.
fn datagram(frame: &[u8]) -> Option<&[u8]> {
    let (protocol, header) = match frame.get(12..14)? {
        [8, 0] => (frame.get(23)?, usize::from(frame[14] & 15) * 4),
        [0x86, 0xdd] => (frame.get(20)?, 40),
        _ => return None,
    };
    frame.get(14 + header..).filter(|udp| *protocol == UDP && udp.len() >= 8)
}

fn open() -> Result<OwnedFd> {
    let protocol = SockProtocol::EthAll;
    let opened = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    setsockopt(&opened, sockopt::ReceiveTimeout, &TimeVal::milliseconds(POLL.as_millis() as i64))?;
    setsockopt(&opened, sockopt::RcvBufForce, &BUFFER)?;
    // The kernel says of each frame how many it could not keep before.
    setsockopt(&opened, sockopt::RxqOvfl, &1)?;
    Ok(opened)
}

fn listen(
    socket: &OwnedFd,
    words: &[Vec<u8>],
    into: &Mutex<State>,
    stop: &AtomicBool,
) -> Result<()> {
    let (mut buffer, mut control) = (vec![0; FRAME_MAX], nix::cmsg_space!(u32));
    while !stop.load(Ordering::Relaxed) {
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let got =
            recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty());
        let (count, lost) = match got {
            Ok(message) => (message.bytes, lost(message.cmsgs()?)),
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            Err(error) => return Err(error).context("the packet socket"),
        };
        ensure!(lost == 0, "{lost} frames were not heard");
        lock(into).heard.take(&buffer[..count], words);
    }
    Ok(())
}

fn lost(mut messages: impl Iterator<Item = ControlMessageOwned>) -> u32 {
    let lost = |message| match message {
        ControlMessageOwned::RxqOvfl(count) => Some(count),
        _ => None,
    };
    messages.find_map(lost).unwrap_or_default()
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

const VXLAN_PORT: u16 = 4789;
const TUNNEL_PORTS: [u16; 2] = [4793, 4794];
const UDP: u8 = 17;
/// The largest piece that the kernel hands over for the link to cut.
const FRAME_MAX: usize = 70_000;
const BUFFER: usize = 256 << 20;
const POLL: Duration = Duration::from_millis(20);
const SETTLE_MAX: Duration = Duration::from_secs(30);
/// Bytes of a frame that may be a question with a word; to look through all would take too long.
const QUESTION_MAX: usize = 500;
