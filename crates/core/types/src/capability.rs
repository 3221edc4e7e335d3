//! Capabilities by name and by number.
//!
//! Owns: the one list of names, and how people may write them.
//! Does not know: what a container gets by default, or what this machine's kernel has.
//! Invariant: a name's place in the list is the kernel's number of it.

/// What a user wrote in `--cap-add` or `--cap-drop`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capability {
    /// `ALL`.
    All,
    /// The kernel's number, below 64.
    One(u8),
}

impl Capability {
    /// Understands a name with or without `CAP_`, in any case; `None` when there is no such.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        if name == "ALL" {
            return Some(Self::All);
        }
        let number = CAPABILITIES.iter().position(|known| *known == name)?;
        u8::try_from(number).ok().map(Self::One)
    }
}

/// Names without `CAP_` in the kernel's order: capabilities(7), Linux 6.
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_understood_in_every_spelling() {
        for (text, expected) in [
            ("CHOWN", Some(Capability::One(0))),
            ("cap_sys_admin", Some(Capability::One(21))),
            ("CAP_CHECKPOINT_RESTORE", Some(Capability::One(40))),
            ("all", Some(Capability::All)),
            ("CAP_ALL", Some(Capability::All)),
            ("CAP_CAP_CHOWN", None),
            ("ADMIN", None),
            ("", None),
        ] {
            assert_eq!(Capability::parse(text), expected, "{text:?}");
        }
    }
}
