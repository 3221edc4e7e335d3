//! Engines with other implementations in user space.
//!
//! Each makes its device and its socket in one namespace: a host is its own inside here.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tunnel::{DropCause, Offload, PeerConfig, PrivateKey};

use crate::spaces::{
    Echo, MTU, Node, PORT, Space, Wire, container, echo_tcp, eventually, inner, outer, ping, run,
};

/// A host with another implementation, set up by `wg`.
pub(crate) struct Other {
    pub(crate) host: Space,
    number: u8,
    key: PrivateKey,
    link: String,
    child: Option<Child>,
}

impl Other {
    /// With a program that makes the link, or the kernel's own.
    pub(crate) fn start(wire: &Wire, number: u8, program: Option<&str>) -> Self {
        let host = wire.plug(number);
        // The control socket's name is the machine's, not the namespace's.
        let nth = COUNTER.fetch_add(1, Ordering::Relaxed);
        let link = format!("wt{nth}x{}", std::process::id() % 1_000_000);
        let child = program.map(|program| {
            let (program, name) = (program.to_owned(), link.clone());
            host.enter(move || {
                let mut command = Command::new(&program);
                command.arg("-f").env("WG_PROCESS_FOREGROUND", "1");
                if program.ends_with(BORINGTUN) {
                    // It would become the user who logged in, whom a test need not have.
                    command.arg("--disable-drop-privileges");
                }
                command.arg(&name);
                command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
            })
        });
        if child.is_none() {
            host.run(&format!("ip link add {link} type wireguard"));
        }
        let shown = format!("wg show {link}");
        eventually("the other implementation answers", || host.tries(&shown).is_ok());
        let key = PrivateKey::generate().unwrap();
        Self { host, number, key, link, child }
    }

    pub(crate) fn set_peer(&self, peer: &PeerConfig) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let secret = base64(&*self.key.to_bytes());
        let (key, address) = (peer.key, peer.address);
        let endpoint = peer.endpoint.unwrap();
        let text = format!(
            "[Interface]\nPrivateKey = {secret}\nListenPort = {PORT}\n\
             [Peer]\nPublicKey = {key}\nEndpoint = {endpoint}\nAllowedIPs = {address}/32\n"
        );
        std::fs::write(file.path(), text).unwrap();
        self.host.run(&format!("wg setconf {} {}", self.link, file.path().display()));
        let own = inner(self.number);
        self.host.run(&format!("ip addr add {own}/32 dev lo"));
        self.host.run(&format!("ip link set {} mtu {MTU} up", self.link));
        self.host.run(&format!("ip route add 10.99.0.0/24 dev {} src {own}", self.link));
    }

    pub(crate) fn config(&self) -> PeerConfig {
        PeerConfig {
            key: self.key.public(),
            endpoint: Some((outer(self.number), PORT).into()),
            address: inner(self.number),
            keepalive: None,
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
            let _ = std::fs::remove_file(format!("/var/run/wireguard/{}.sock", self.link));
        }
    }
}

fn base64(bytes: &[u8]) -> String {
    // A public key is shown in the same form.
    tunnel::PublicKey::from_bytes(bytes.try_into().unwrap()).to_string()
}

/// Both directions, host to host and through VXLAN, whoever begins.
pub(crate) fn passes_with(program: Option<&str>, bytes: usize) {
    for ours_first in [true, false] {
        let wire = Wire::new();
        let mut ours = Node::new(&wire, 1);
        ours.start(Offload::Tunnel);
        let other = Other::start(&wire, 2, program);
        if ours_first {
            ours.set_peers(&[other.config()]);
            other.set_peer(&ours.config());
        } else {
            other.set_peer(&ours.config());
            ours.set_peers(&[other.config()]);
        }
        let echo = Echo::start(&other.host, inner(2).into());
        let answer = ping(&ours.inside, inner(1).into(), echo.address, Duration::from_secs(15));
        assert!(answer.is_some(), "{:?}", ours.observe());
        echo_tcp(&ours.inside, &other.host, inner(2).into(), bytes);
        echo_tcp(&other.host, &ours.inside, inner(1).into(), bytes);
        let (one, two) = (container(&ours.inside, 1, 2), container(&other.host, 2, 1));
        echo_tcp(&one, &two, [10, 77, 0, 2].into(), bytes);
        echo_tcp(&two, &one, [10, 77, 0, 1].into(), bytes);
        // Before the other side knew of us, there was no session to wait for; and initiations that
        // cross are answered in vain.
        let usual = [DropCause::NoSession, DropCause::UnknownSession];
        let drops = ours.peer().drops;
        assert_eq!(drops.iter().find(|(cause, _)| !usual.contains(cause)), None);
        let shown = other.host.run(&format!("wg show {} transfer", other.link));
        let received: u64 = shown.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(received > 4 * bytes as u64, "{shown}");
    }
}

#[test]
fn wireguard_go_is_spoken_to_in_both_directions() {
    run("wg --version");
    passes_with(Some("wireguard-go"), 2 << 20);
}

const BORINGTUN: &str = "boringtun-cli";

static COUNTER: AtomicU32 = AtomicU32::new(0);

/// No distribution has it; `./test packages` builds it.
fn boringtun_cli() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::current_exe().unwrap();
    let built = own.ancestors().nth(3).unwrap().join("peers/bin");
    std::env::split_paths(&path)
        .chain([built])
        .map(|folder| folder.join(BORINGTUN))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("no {BORINGTUN}: run `./test packages`"))
}

#[test]
fn boringtun_cli_is_spoken_to_in_both_directions() {
    run("wg --version");
    passes_with(boringtun_cli().to_str(), 2 << 20);
}
