//! Switches of the kernel, in the namespace of the calling thread.
//!
//! Owns: which of them are set where, and why.
//! Does not know: links.
//! Invariant: a switch that this kernel does not have is left alone.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};

/// A namespace of ours that forwards. Before it has any link: links copy the defaults.
pub(crate) fn router() {
    for (name, value) in ROUTER {
        set(name, value);
    }
}

/// The tunnel's namespace, before it has any link: it forwards nothing, and while keys change a
/// peer's packets come by another device than they are sent by.
pub(crate) fn tunnel() {
    for (name, value) in TUNNEL {
        set(name, value);
    }
}

/// Docker's defaults, for a new namespace: low ports and ping need no capability inside a
/// container.
pub(crate) fn container() {
    write("net/ipv4/ip_unprivileged_port_start", "0");
    write("net/ipv4/ping_group_range", "0 2147483647");
}

/// The host forwards, and goes on to learn its own IPv6 routes where it did.
pub(crate) fn host() -> io::Result<()> {
    let forwarding = path("net/ipv4/ip_forward");
    if read(&forwarding)? != "1" {
        fs::write(&forwarding, "1")?;
    }
    let forwarding = path("net/ipv6/conf/all/forwarding");
    // No IPv6 in this kernel: nothing to forward.
    if read(&forwarding).is_ok_and(|value| value != "1") {
        for link in fs::read_dir(path("net/ipv6/conf"))?.flatten() {
            let accept = link.path().join("accept_ra");
            if read(&accept).is_ok_and(|value| value == "1") {
                let _ = fs::write(&accept, "2");
            }
        }
        fs::write(&forwarding, "1")?;
    }
    Ok(())
}

/// The node's own connections to 127.0.0.1 may go to the mesh, over this one link.
pub(crate) fn gateway(link: &str) {
    set(&format!("net/ipv4/conf/{link}/route_localnet"), "1");
    set(&format!("net/ipv4/conf/{link}/rp_filter"), "0");
}

/// Room for the connections of a whole node; only ever raised.
pub(crate) fn raise_tracked_connections() {
    let file = path(TRACKED_MAX);
    if let Ok(now) = read(&file)
        && now.parse::<u64>().is_ok_and(|now| now < TRACKED_CONNECTIONS)
    {
        let _ = fs::write(&file, TRACKED_CONNECTIONS.to_string());
    }
}

/// Tracked connections here, and how many there may be.
pub(crate) fn tracked_connections() -> Option<(u64, u64)> {
    let number = |name| read(&path(name)).ok()?.parse().ok();
    Some((number("net/netfilter/nf_conntrack_count")?, number(TRACKED_MAX)?))
}

/// What a new namespace takes over from where it is made: a print of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Inherited(u64);

/// Of the namespace of the calling thread. Which switches those are says
/// `net.core.devconf_inherit_init_net` in the kernel's `Documentation/admin-guide/sysctl/net.rst`;
/// IPv6's are the kernel's own unless it is asked otherwise.
pub(crate) fn inherited() -> Inherited {
    let mut hasher = DefaultHasher::new();
    for name in INHERITED {
        read(&path(name)).unwrap_or_default().hash(&mut hasher);
    }
    for dir in INHERITED_DIRS {
        for switch in fs::read_dir(path(dir)).into_iter().flatten().flatten() {
            (switch.file_name(), read(&switch.path()).unwrap_or_default()).hash(&mut hasher);
        }
    }
    Inherited(hasher.finish())
}

fn set(name: &str, value: &str) {
    if read(&path(name)).is_ok_and(|now| now != value) {
        write(name, value);
    }
}

fn write(name: &str, value: &str) {
    if let Err(error) = fs::write(path(name), value) {
        tracing::debug!(name, value, %error, "a switch of the kernel stays as it is");
    }
}

fn read(file: &Path) -> io::Result<String> {
    Ok(fs::read_to_string(file)?.trim().to_owned())
}

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys").join(name)
}

const ROUTER: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    // Answers go back by the connection, not by the route to their destination.
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // Errors carry the address of the link that the packet came by: it is known at the other end.
    ("net/ipv4/icmp_errors_use_inbound_ifaddr", "1"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
    ("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
    ("net/netfilter/nf_conntrack_tcp_timeout_established", "432000"),
    ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "30"),
];

const TUNNEL: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "0"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // All addresses inside are of the other family.
    ("net/ipv6/conf/all/disable_ipv6", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
];

const INHERITED: &[&str] = &[
    "net/core/devconf_inherit_init_net",
    "net/ipv4/tcp_congestion_control",
    "net/ipv4/tcp_rmem",
    "net/ipv4/tcp_wmem",
];

const INHERITED_DIRS: &[&str] = &["net/ipv4/conf/all", "net/ipv4/conf/default"];

const TRACKED_MAX: &str = "net/netfilter/nf_conntrack_max";

/// 320 bytes each when used.
const TRACKED_CONNECTIONS: u64 = 1 << 20;
