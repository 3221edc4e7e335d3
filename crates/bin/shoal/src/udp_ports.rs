//! Whether the cluster's UDP ports are free on this host.
//!
//! Owns: trying them, and finding out who holds one. Does not know: which ports a cluster has.
//! Invariant: nothing is held afterwards. Asked before this node is a member, so that whoever holds
//! a port is not this node itself; what it had of a cluster before is given a moment to go.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::Duration;

use tokio::time::Instant;
use types::{ErrorCode, Fault};

/// One that must be free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UdpPort {
    pub number: u16,
    /// Option of `swarm init` with which another one can be chosen.
    pub option: &'static str,
    /// Devices of the kernel share it.
    pub shared: bool,
}

/// The ports of a cluster: that of the data path, then those of encrypted networks.
pub(crate) fn of_cluster(data_path: u16, encryption: &[u16]) -> Vec<UdpPort> {
    let path = UdpPort { number: data_path, option: "--data-path-port", shared: true };
    let two = encryption.iter().map(|number| UdpPort {
        number: *number,
        option: "--encryption-ports",
        shared: false,
    });
    std::iter::once(path).chain(two).collect()
}

/// Refuses ports that somebody holds, by their names.
pub(crate) async fn check_free(ports: &[UdpPort], patience: Duration) -> Result<(), Fault> {
    let deadline = Instant::now() + patience;
    loop {
        let Some((port, holder)) = ports.iter().find_map(|port| Some((port, holder(*port)?)))
        else {
            return Ok(());
        };
        if Instant::now() >= deadline {
            return Err(refusal(*port, &holder));
        }
        tokio::time::sleep(RETRY_PERIOD).await;
    }
}

/// How long what a membership before had may take to go.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
const RETRY_PERIOD: Duration = Duration::from_millis(100);

fn refusal(port: UdpPort, holder: &Holder) -> Fault {
    let UdpPort { number, option, .. } = port;
    let by = match holder {
        Holder::Program { name, pid } => format!("the program {name} (process {pid})"),
        Holder::Kernel => "a device of this host's kernel".to_owned(),
    };
    let message =
        format!("UDP port {number}, which the cluster needs on every node, is held by {by}");
    Fault { field: option.into(), ..Fault::new(ErrorCode::FailedPrecondition, message) }
        .hint(format!("free it, or make a cluster with other ports: shoal swarm init {option}"))
}

/// Who holds a port.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Holder {
    Program {
        name: String,
        pid: u32,
    },
    /// No process has it open.
    Kernel,
}

/// `None`: it is free, or held by who shares it.
fn holder(port: UdpPort) -> Option<Holder> {
    let all = (Ipv6Addr::UNSPECIFIED, port.number);
    let tried = match UdpSocket::bind(all) {
        // A host without IPv6.
        Err(error) if error.kind() != ErrorKind::AddrInUse => {
            UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port.number))
        }
        tried => tried,
    };
    let in_use = tried.err().is_some_and(|error| error.kind() == ErrorKind::AddrInUse);
    let holder = in_use.then(|| program_with(&sockets_on(port.number)).unwrap_or(Holder::Kernel));
    holder.filter(|holder| !port.shared || *holder != Holder::Kernel)
}

/// The inodes of sockets that are bound to a port.
fn sockets_on(port: u16) -> Vec<String> {
    let tables = ["/proc/self/net/udp", "/proc/self/net/udp6"];
    let tables = tables.iter().filter_map(|path| fs::read_to_string(path).ok());
    tables.flat_map(|table| inodes(&table, port)).collect()
}

/// Of one of the kernel's tables: `sl local_address rem_address st … inode`.
fn inodes(table: &str, port: u16) -> Vec<String> {
    let one = |line: &str| {
        let mut words = line.split_whitespace();
        let (_, number) = words.nth(1)?.rsplit_once(':')?;
        let same = u16::from_str_radix(number, 16).is_ok_and(|number| number == port);
        let inode = words.nth(INODE_BEHIND_ADDRESS)?;
        same.then(|| inode.to_owned())
    };
    table.lines().skip(1).filter_map(one).collect()
}

/// Words between the local address and the inode.
const INODE_BEHIND_ADDRESS: usize = 7;

fn program_with(inodes: &[String]) -> Option<Holder> {
    let links: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let is_one = |file: fs::DirEntry| {
            let target = fs::read_link(file.path()).unwrap_or_default();
            links.iter().any(|link| target.as_os_str() == link.as_str())
        };
        if files.flatten().any(is_one) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(Holder::Program { name: name.trim().to_owned(), pid });
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_that_a_program_holds_is_refused_with_its_name() {
        for address in ["[::]:0", "127.0.0.1:0"] {
            let taken = UdpSocket::bind(address).unwrap();
            let number = taken.local_addr().unwrap().port();
            for ports in [of_cluster(number, &[]), of_cluster(0, &[0, number])] {
                let fault = check_free(&ports, Duration::ZERO).await.unwrap_err();
                assert_eq!(fault.field, ports.last().unwrap().option, "{address}");
                let own = format!("(process {})", std::process::id());
                assert!(fault.message.contains(&number.to_string()), "{}", fault.message);
                assert!(fault.message.ends_with(&own), "{}", fault.message);
            }
            drop(taken);
            check_free(&of_cluster(number, &[]), PATIENCE).await.unwrap();
        }
    }

    #[tokio::test]
    async fn one_that_is_given_back_is_waited_for() {
        let taken = UdpSocket::bind("[::]:0").unwrap();
        let ports = of_cluster(0, &[taken.local_addr().unwrap().port()]);
        let (looked, freed) = tokio::join!(check_free(&ports, PATIENCE), async {
            tokio::task::yield_now().await;
            drop(taken);
        });
        assert_eq!((looked, freed), (Ok(()), ()));
    }

    #[test]
    fn the_table_of_the_kernel_is_read() {
        let line = |port: &str, inode: &str| {
            let queues = "07 00000000:00000000 00:00000000 00000000";
            format!(" 123: 00000000:{port} 00000000:0000 {queues} 0 0 {inode} 2 0000 0\n")
        };
        let table =
            format!("  sl  local_address …\n{}{}", line("12B5", "4711"), line("12B6", "4712"));
        let table = table.as_str();
        assert_eq!(inodes(table, 4_789), ["4711"]);
        assert_eq!(inodes(table, 4_788), [""; 0]);
        assert_eq!(inodes("", 1), [""; 0]);
    }
}
