//! Engines with the kernel's own WireGuard, where there is one.

use std::time::Duration;

use tunnel::Offload;

use crate::interop::{Other, passes_with};
use crate::spaces::{Echo, Node, Space, Wire, echo_tcp, inner, ping};

/// Whether it is there; where it must be, its absence is a failure.
fn is_there() -> bool {
    let space = Space::new();
    let made = space.tries("ip link add wg0 type wireguard");
    if let Err(problem) = &made {
        let required = std::env::var_os("KERNEL_WIREGUARD_REQUIRED").is_some();
        assert!(!required, "the kernel's WireGuard must be here: {problem}");
        eprintln!("skipped: this kernel has no WireGuard: {}", problem.trim());
    }
    made.is_ok()
}

#[test]
fn the_kernel_is_spoken_to_in_both_directions() {
    if is_there() {
        passes_with(None, 256 << 10);
    }
}

#[test]
fn the_kernel_is_reached_through_loss_and_delay() {
    if !is_there() {
        return;
    }
    let wire = Wire::new();
    let mut ours = Node::new(&wire, 1);
    ours.start(Offload::Tunnel);
    let other = Other::start(&wire, 2, None);
    for host in [&ours.host, &other.host] {
        host.run("tc qdisc add dev eth0 root netem delay 10ms 5ms loss 3%");
    }
    other.set_peer(&ours.config());
    ours.set_peers(&[other.config()]);
    let echo = Echo::start(&other.host, inner(2).into());
    let answer = ping(&ours.inside, inner(1).into(), echo.address, Duration::from_secs(20));
    assert!(answer.is_some(), "{:?}", ours.observe());
    echo_tcp(&ours.inside, &other.host, inner(2).into(), 64 << 10);
    echo_tcp(&other.host, &ours.inside, inner(1).into(), 64 << 10);
    // Another one of ours in its place: the kernel's sessions are those of the one before.
    ours.stop();
    ours.start(Offload::Tunnel);
    ours.set_peers(&[other.config()]);
    let answer = ping(&ours.inside, inner(1).into(), echo.address, Duration::from_secs(20));
    assert!(answer.is_some(), "{:?}", ours.observe());
}
