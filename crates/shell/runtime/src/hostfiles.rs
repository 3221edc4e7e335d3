//! Files of the host that a container gets its own version of.
//!
//! Owns: `hosts`, `hostname` and `resolv.conf` of a container.
//! Does not know: where they are bound.
//! Invariant: no name server in a container's `resolv.conf` is a loopback address, which would be
//! the container's own.

use std::net::IpAddr;
use std::path::Path;

/// `/etc/hosts` of a container with these lines.
pub(crate) fn hosts(lines: &[(IpAddr, String)]) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    for (address, name) in lines {
        text.push_str(&format!("{address}\t{name}\n"));
    }
    text
}

/// The host's `resolv.conf` for a container. Where only a resolver of the host's own stands in it,
/// systemd-resolved's real servers are taken instead.
pub(crate) fn resolv_conf() -> String {
    let read = |path| std::fs::read_to_string(Path::new(path)).unwrap_or_default();
    let host = read("/etc/resolv.conf");
    let upstream = read("/run/systemd/resolve/resolv.conf");
    choose_resolv_conf(&host, &upstream)
}

fn choose_resolv_conf(host: &str, upstream: &str) -> String {
    let cleaned = without_loopback(host);
    if has_server(&cleaned) {
        return cleaned;
    }
    let cleaned_upstream = without_loopback(upstream);
    if has_server(&cleaned_upstream) { cleaned_upstream } else { cleaned }
}

fn without_loopback(text: &str) -> String {
    let keep = |line: &&str| {
        server(line).is_none_or(|server| {
            let bare = server.split('%').next().unwrap_or_default();
            !bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        })
    };
    text.lines().filter(keep).map(|line| format!("{line}\n")).collect()
}

fn has_server(text: &str) -> bool {
    text.lines().any(|line| server(line).is_some())
}

fn server(line: &str) -> Option<&str> {
    let mut words = line.split_whitespace();
    (words.next() == Some("nameserver")).then(|| words.next()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_resolvers_are_replaced() {
        let stub = "nameserver 127.0.0.53\noptions edns0\nsearch lan\n";
        let real = "nameserver 10.0.0.1\nsearch corp\n";
        for (host, upstream, expected) in [
            (real, "", real),
            (stub, real, real),
            (stub, "", "options edns0\nsearch lan\n"),
            ("nameserver ::1\nnameserver 9.9.9.9\n", real, "nameserver 9.9.9.9\n"),
            ("nameserver fe80::1%eth0\n", "", "nameserver fe80::1%eth0\n"),
            ("", "", ""),
        ] {
            assert_eq!(choose_resolv_conf(host, upstream), expected, "{host:?}");
        }
    }

    #[test]
    fn the_host_name_leads_to_the_container() {
        let text = hosts(&[("172.17.0.2".parse().unwrap(), "web".to_owned())]);
        assert!(text.contains("172.17.0.2\tweb\n"), "{text}");
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"), "{text}");
    }
}
