//! nftables without a library: tables, rules, elements.
//!
//! Owns: everything of nftables that is not special to one of our tables.
//! Does not know: which tables there are.
//! Invariant: only `foreign` writes to tables of others.

pub(crate) mod expression;
pub(crate) mod foreign;
pub(crate) mod table;

/// Of both families.
pub(crate) const INET: u8 = 1;
pub(crate) const V4_ONLY: u8 = 2;
pub(crate) const NETDEV: u8 = 5;

pub(crate) mod hook {
    pub(crate) const PREROUTING: u32 = 0;
    pub(crate) const INPUT: u32 = 1;
    pub(crate) const FORWARD: u32 = 2;
    pub(crate) const OUTPUT: u32 = 3;
    pub(crate) const POSTROUTING: u32 = 4;
    /// Of a link.
    pub(crate) const EGRESS: u32 = 1;
}

pub(crate) mod priority {
    /// Before anybody decides what is tracked.
    pub(crate) const FIRST: i32 = -310;
    pub(crate) const RAW: i32 = -300;
    pub(crate) const MANGLE: i32 = -150;
    pub(crate) const DESTINATION: i32 = -100;
    pub(crate) const FILTER: i32 = 0;
    pub(crate) const SOURCE: i32 = 100;
}

/// Types as nft names them, for those who list a table.
pub(crate) mod kind {
    pub(crate) const V4: u32 = 7;
    pub(crate) const V6: u32 = 8;
    pub(crate) const PROTOCOL: u32 = 12;
    pub(crate) const PORT: u32 = 13;
    /// Four bytes in the machine's order.
    pub(crate) const NUMBER: u32 = 19;
    pub(crate) const LINK: u32 = 41;

    /// Of a key of several parts.
    pub(crate) fn joined(parts: &[u32]) -> u32 {
        parts.iter().fold(0, |all, part| all << 6 | part)
    }
}
