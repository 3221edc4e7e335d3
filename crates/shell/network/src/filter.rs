//! The rule that gives tasks outgoing access.
//!
//! Owns: one nftables table of this daemon instance, with one masquerading rule.
//! Does not know: links and tasks.
//! Invariant: the table is replaced as a whole in one transaction, so there is never half a rule,
//! and nobody else's table is read or written.

use std::io;

use ipnet::Ipv4Net;

use crate::netlink::{ACKNOWLEDGE, APPEND, CREATE, Message, Socket};

/// Makes the table, or makes it anew: what comes from `subnet` and does not leave through a link
/// whose name begins with `link_prefix` gets the host's address.
pub(crate) fn install(table: &str, subnet: Ipv4Net, link_prefix: &str) -> io::Result<()> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    socket.batch(vec![
        batch_mark(BATCH_BEGIN),
        table_message(NEW_TABLE, CREATE, table),
        table_message(DELETE_TABLE, 0, table),
        table_message(NEW_TABLE, CREATE, table),
        chain_message(table),
        rule_message(table, subnet, link_prefix),
        batch_mark(BATCH_END),
    ])
}

/// Whether the table is there.
pub(crate) fn exists(table: &str) -> io::Result<bool> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    match socket.request(table_message(GET_TABLE, 0, table)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes the table, if it is there.
pub(crate) fn remove(table: &str) -> io::Result<()> {
    let mut socket = Socket::open(libc::NETLINK_NETFILTER)?;
    // Making it first makes the removal succeed in any case.
    socket.batch(vec![
        batch_mark(BATCH_BEGIN),
        table_message(NEW_TABLE, CREATE, table),
        table_message(DELETE_TABLE, 0, table),
        batch_mark(BATCH_END),
    ])
}

/// `nfgenmsg`: family, version, and for batches the subsystem in network order.
fn header(family: u8, resource: u16) -> [u8; 4] {
    let resource = resource.to_be_bytes();
    [family, 0, resource[0], resource[1]]
}

fn batch_mark(kind: u16) -> Message {
    Message::new(kind, 0, &header(0, SUBSYSTEM))
}

fn message(kind: u16, flags: u16) -> Message {
    Message::new(SUBSYSTEM << 8 | kind, flags | ACKNOWLEDGE, &header(FAMILY_IPV4, 0))
}

fn table_message(kind: u16, flags: u16, table: &str) -> Message {
    message(kind, flags).text(TABLE_NAME, table)
}

fn chain_message(table: &str) -> Message {
    message(NEW_CHAIN, CREATE)
        .text(CHAIN_TABLE, table)
        .text(CHAIN_NAME, CHAIN)
        .nested(CHAIN_HOOK, |hook| {
            hook.number_be(HOOK_NUMBER, HOOK_POSTROUTING)
                .number_be(HOOK_PRIORITY, PRIORITY_SOURCE_NAT)
        })
        .text(CHAIN_TYPE, "nat")
}

fn rule_message(table: &str, subnet: Ipv4Net, link_prefix: &str) -> Message {
    message(NEW_RULE, CREATE | APPEND).text(RULE_TABLE, table).text(RULE_CHAIN, CHAIN).nested(
        RULE_EXPRESSIONS,
        |list| {
            let list = expression(list, "payload", |data| {
                data.number_be(PAYLOAD_REGISTER, REGISTER)
                    .number_be(PAYLOAD_BASE, NETWORK_HEADER)
                    .number_be(PAYLOAD_OFFSET, SOURCE_ADDRESS_OFFSET)
                    .number_be(PAYLOAD_LENGTH, 4)
            });
            let list = expression(list, "bitwise", |data| {
                data.number_be(BITWISE_SOURCE, REGISTER)
                    .number_be(BITWISE_TARGET, REGISTER)
                    .number_be(BITWISE_LENGTH, 4)
                    .nested(BITWISE_MASK, |v| v.bytes(VALUE, &subnet.netmask().octets()))
                    .nested(BITWISE_XOR, |v| v.bytes(VALUE, &[0; 4]))
            });
            let list = compare(list, COMPARE_EQUAL, &subnet.network().octets());
            let list = expression(list, "meta", |data| {
                data.number_be(META_REGISTER, REGISTER).number_be(META_KEY, META_OUT_LINK_NAME)
            });
            let list = compare(list, COMPARE_NOT_EQUAL, link_prefix.as_bytes());
            expression(list, "masq", |data| data)
        },
    )
}

fn expression(list: Message, name: &str, fill: impl FnOnce(Message) -> Message) -> Message {
    list.nested(LIST_ELEMENT, |element| {
        element.text(EXPRESSION_NAME, name).nested(EXPRESSION_DATA, fill)
    })
}

fn compare(list: Message, operation: u32, value: &[u8]) -> Message {
    expression(list, "cmp", |data| {
        data.number_be(COMPARE_REGISTER, REGISTER)
            .number_be(COMPARE_OPERATION, operation)
            .nested(COMPARE_DATA, |data| data.bytes(VALUE, value))
    })
}

const CHAIN: &str = "outgoing";

const SUBSYSTEM: u16 = 10;
const FAMILY_IPV4: u8 = 2;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;

const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

const TABLE_NAME: u16 = 1;

const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_POSTROUTING: u32 = 4;
const PRIORITY_SOURCE_NAT: u32 = 100;

const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const VALUE: u16 = 1;

/// A 16-byte register: a link's name fits.
const REGISTER: u32 = 1;

const PAYLOAD_REGISTER: u16 = 1;
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const PAYLOAD_LENGTH: u16 = 4;
const NETWORK_HEADER: u32 = 1;
const SOURCE_ADDRESS_OFFSET: u32 = 12;

const BITWISE_SOURCE: u16 = 1;
const BITWISE_TARGET: u16 = 2;
const BITWISE_LENGTH: u16 = 3;
const BITWISE_MASK: u16 = 4;
const BITWISE_XOR: u16 = 5;

const META_KEY: u16 = 2;
const META_REGISTER: u16 = 1;
const META_OUT_LINK_NAME: u32 = 7;

const COMPARE_REGISTER: u16 = 1;
const COMPARE_OPERATION: u16 = 2;
const COMPARE_DATA: u16 = 3;
const COMPARE_EQUAL: u32 = 0;
const COMPARE_NOT_EQUAL: u32 = 1;
