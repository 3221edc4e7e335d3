//! Capabilities as bit sets.
//!
//! Owns: docker's default set, and adding to and dropping from it.
//! Does not know: how a process is given them.
//! Invariant: a set never holds a capability that this kernel does not have.

use std::fs;

use types::{CAPABILITIES, Capability};

/// What a container gets when nothing is added or dropped; docker's list.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The bit of a known name; for constants.
pub(crate) const fn bit(name: &str) -> u64 {
    let mut at = 0;
    while at < CAPABILITIES.len() {
        if same(CAPABILITIES[at].as_bytes(), name.as_bytes()) {
            return 1 << at;
        }
        at += 1;
    }
    panic!("no such capability");
}

/// The capabilities of a container: docker's default with `add` and `drop` applied. `ALL` is
/// allowed in both; a name that is added wins over `drop: ALL`, one that is dropped over
/// `add: ALL`. The error is the name that does not exist.
pub(crate) fn resolve(add: &[String], drop: &[String]) -> Result<u64, String> {
    let added = parse(add)?;
    let dropped = parse(drop)?;
    let default = DEFAULT.iter().fold(0, |set, name| set | bit(name));
    let base = if added.all {
        u64::MAX
    } else if dropped.all {
        0
    } else {
        default
    };
    Ok((base & !dropped.named | added.named) & supported())
}

#[derive(Default)]
struct Parsed {
    all: bool,
    named: u64,
}

fn parse(names: &[String]) -> Result<Parsed, String> {
    let mut parsed = Parsed::default();
    for name in names {
        match Capability::parse(name) {
            Some(Capability::All) => parsed.all = true,
            Some(Capability::One(number)) => parsed.named |= 1 << number,
            None => return Err(name.clone()),
        }
    }
    Ok(parsed)
}

/// Every capability of this kernel.
fn supported() -> u64 {
    let last: u32 = fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(CAPABILITIES.len() as u32 - 1);
    u64::MAX >> (63 - last.min(63))
}

const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut at = 0;
    while at < a.len() {
        if a[at] != b[at] {
            return false;
        }
        at += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_added_and_dropped_as_docker_does() {
        let names = |list: &[&str]| list.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        // The default set as the kernel prints it for a docker container.
        let default = 0xa804_25fb;
        type Case = (Vec<String>, Vec<String>, Result<u64, String>);
        let cases: Vec<Case> = vec![
            (vec![], vec![], Ok(default)),
            (names(&["NET_ADMIN"]), vec![], Ok(default | bit("NET_ADMIN"))),
            (names(&["cap_net_admin"]), vec![], Ok(default | bit("NET_ADMIN"))),
            (vec![], names(&["CAP_KILL"]), Ok(default & !bit("KILL"))),
            (vec![], names(&["all"]), Ok(0)),
            (names(&["CHOWN"]), names(&["ALL"]), Ok(bit("CHOWN"))),
            (names(&["ALL"]), vec![], Ok(supported())),
            (names(&["ALL"]), names(&["SYS_ADMIN"]), Ok(supported() & !bit("SYS_ADMIN"))),
            (names(&["ADMIN"]), vec![], Err("ADMIN".into())),
        ];
        for (add, drop, expected) in cases {
            assert_eq!(resolve(&add, &drop), expected, "add {add:?} drop {drop:?}");
        }
    }
}
