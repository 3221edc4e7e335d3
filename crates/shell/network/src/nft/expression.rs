//! Rules, expression by expression.
//!
//! Owns: the bytes of nftables' expressions.
//! Does not know: tables, chains, or what a rule is for.
//! Invariant: register `n` is the n-th of sixteen 32-bit registers; longer values take more.

use crate::netlink::Message;

/// One rule under construction: its expressions, and what it says to those who list it.
#[derive(Clone, Debug)]
pub(crate) struct Rule(Message, Option<String>);

/// Which packet a jump is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Where in a packet bytes are taken from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Base {
    Link = 0,
    Network = 1,
    Transport = 2,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Meta {
    Mark = 3,
    InLink = 6,
    OutLink = 7,
    Family = 15,
    Protocol = 16,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Tracked {
    State = 0,
    Direction = 1,
    Status = 2,
    Mark = 3,
    Zone = 17,
}

impl Family {
    pub(crate) const ALL: [Self; 2] = [Self::V4, Self::V6];

    pub(crate) fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    pub(crate) fn bytes(self) -> u32 {
        match self {
            Self::V4 => 4,
            Self::V6 => 16,
        }
    }

    /// Registers of an address.
    pub(crate) fn registers(self) -> u32 {
        self.bytes() / 4
    }
}

impl Rule {
    pub(crate) fn new() -> Self {
        Self(Message::fragment(), None)
    }

    /// About packets of one family.
    pub(crate) fn of(family: Family) -> Self {
        Self::new().meta(Meta::Family, 0).is(0, &[family.number()])
    }

    /// Says in words what nft cannot print.
    pub(crate) fn comment(self, text: String) -> Self {
        Self(self.0, Some(text))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// As nft keeps a comment: kind, length, and text with its end.
    pub(crate) fn user_data(&self) -> Option<Vec<u8>> {
        let text = self.1.as_ref()?.as_bytes();
        Some([&[0, (text.len() + 1) as u8], text, &[0]].concat())
    }

    fn expression(self, name: &str, fill: impl FnOnce(Message) -> Message) -> Self {
        let all = self.0.nested(LIST_ELEMENT, |element| {
            element.text(EXPRESSION_NAME, name).nested(EXPRESSION_DATA, fill)
        });
        Self(all, self.1)
    }

    pub(crate) fn meta(self, key: Meta, to: u32) -> Self {
        self.expression("meta", |data| data.number_be(1, register(to)).number_be(2, key as u32))
    }

    pub(crate) fn set_mark(self, from: u32) -> Self {
        self.expression("meta", |data| {
            data.number_be(2, Meta::Mark as u32).number_be(3, register(from))
        })
    }

    pub(crate) fn load(self, base: Base, offset: u32, length: u32, to: u32) -> Self {
        self.expression("payload", |data| {
            data.number_be(1, register(to))
                .number_be(2, base as u32)
                .number_be(3, offset)
                .number_be(4, length)
        })
    }

    pub(crate) fn source(self, family: Family, to: u32) -> Self {
        let offset = if family == Family::V4 { 12 } else { 8 };
        self.load(Base::Network, offset, family.bytes(), to)
    }

    pub(crate) fn destination(self, family: Family, to: u32) -> Self {
        let offset = if family == Family::V4 { 16 } else { 24 };
        self.load(Base::Network, offset, family.bytes(), to)
    }

    /// Protocol and destination port, in two registers.
    pub(crate) fn service(self, to: u32) -> Self {
        self.meta(Meta::Protocol, to).load(Base::Transport, 2, 2, to + 1)
    }

    /// Writes into the packet; `sum` is the offset of the transport's checksum, to be corrected.
    pub(crate) fn store(
        self,
        base: Base,
        offset: u32,
        length: u32,
        from: u32,
        sum: Option<u32>,
    ) -> Self {
        self.expression("payload", |data| {
            let data = data
                .number_be(5, register(from))
                .number_be(2, base as u32)
                .number_be(3, offset)
                .number_be(4, length);
            match sum {
                Some(sum) => data.number_be(6, CHECKSUM_INTERNET).number_be(7, sum),
                None => data,
            }
        })
    }

    pub(crate) fn is(self, from: u32, value: &[u8]) -> Self {
        self.compare(from, 0, value)
    }

    pub(crate) fn differs(self, from: u32, value: &[u8]) -> Self {
        self.compare(from, 1, value)
    }

    fn compare(self, from: u32, operation: u32, value: &[u8]) -> Self {
        self.expression("cmp", |data| {
            data.number_be(1, register(from))
                .number_be(2, operation)
                .nested(3, |data| data.bytes(VALUE, value))
        })
    }

    /// `to` becomes those bits of `from` that are in the mask.
    pub(crate) fn mask(self, from: u32, to: u32, mask: &[u8]) -> Self {
        self.expression("bitwise", |data| {
            data.number_be(1, register(from))
                .number_be(2, register(to))
                .number_be(3, mask.len() as u32)
                .nested(4, |data| data.bytes(VALUE, mask))
                .nested(5, |data| data.bytes(VALUE, &vec![0; mask.len()]))
        })
    }

    pub(crate) fn in_link(self, name: &str) -> Self {
        self.meta(Meta::InLink, 0).is(0, &padded(name))
    }

    pub(crate) fn not_in_link(self, name: &str) -> Self {
        self.meta(Meta::InLink, 0).differs(0, &padded(name))
    }

    pub(crate) fn in_links(self, prefix: &str) -> Self {
        self.meta(Meta::InLink, 0).is(0, prefix.as_bytes())
    }

    pub(crate) fn out_link(self, name: &str) -> Self {
        self.meta(Meta::OutLink, 0).is(0, &padded(name))
    }

    pub(crate) fn not_out_link(self, name: &str) -> Self {
        self.meta(Meta::OutLink, 0).differs(0, &padded(name))
    }

    pub(crate) fn protocol(self, number: u8) -> Self {
        self.meta(Meta::Protocol, 0).is(0, &[number])
    }

    /// It asks for a new connection, RFC 9293 section 3.5.
    pub(crate) fn opens_tcp(self) -> Self {
        self.protocol(libc::IPPROTO_TCP as u8)
            .load(Base::Transport, TCP_FLAGS_OFFSET, 1, 0)
            .mask(0, 0, &[TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK])
            .is(0, &[TCP_SYN])
    }

    pub(crate) fn within(self, set: &str, from: u32) -> Self {
        self.expression("lookup", |data| data.text(1, set).number_be(2, register(from)))
    }

    pub(crate) fn not_within(self, set: &str, from: u32) -> Self {
        self.expression("lookup", |data| {
            data.text(1, set).number_be(2, register(from)).number_be(5, LOOKUP_INVERTED)
        })
    }

    /// Puts the key into a set that forgets; a set that is full ends the rule.
    pub(crate) fn remember(self, set: &str, from: u32) -> Self {
        self.expression("dynset", |data| {
            data.text(1, set).number_be(3, DYNSET_UPDATE).number_be(4, register(from))
        })
    }

    /// The map's value for the key in `from` goes to `to`.
    pub(crate) fn map(self, map: &str, from: u32, to: u32) -> Self {
        self.expression("lookup", |data| {
            data.text(1, map).number_be(2, register(from)).number_be(3, register(to))
        })
    }

    /// The map's value is where to go on.
    pub(crate) fn dispatch(self, map: &str, from: u32) -> Self {
        self.expression("lookup", |data| {
            data.text(1, map).number_be(2, register(from)).number_be(3, VERDICT_REGISTER)
        })
    }

    /// A number below `modulus`, by chance.
    pub(crate) fn random(self, modulus: u32, to: u32) -> Self {
        self.expression("numgen", |data| {
            data.number_be(1, register(to)).number_be(2, modulus).number_be(3, 1).number_be(4, 0)
        })
    }

    pub(crate) fn value(self, to: u32, value: &[u8]) -> Self {
        self.expression("immediate", |data| {
            data.number_be(1, register(to)).nested(2, |data| data.bytes(VALUE, value))
        })
    }

    pub(crate) fn tracked(self, key: Tracked, to: u32) -> Self {
        self.expression("ct", |data| data.number_be(1, register(to)).number_be(2, key as u32))
    }

    /// The connection is in one of these states.
    pub(crate) fn state(self, states: u32) -> Self {
        self.tracked_bits(Tracked::State, states)
    }

    /// Its destination was translated here.
    pub(crate) fn translated(self) -> Self {
        self.tracked_bits(Tracked::Status, STATUS_DESTINATION_TRANSLATED)
    }

    fn tracked_bits(self, key: Tracked, bits: u32) -> Self {
        self.tracked(key, 0).mask(0, 0, &bits.to_ne_bytes()).differs(0, &[0; 4])
    }

    pub(crate) fn set_tracked_mark(self, from: u32) -> Self {
        self.expression("ct", |data| {
            data.number_be(2, Tracked::Mark as u32).number_be(4, register(from))
        })
    }

    /// The zone of packets in the connection's first direction.
    pub(crate) fn set_original_zone(self, from: u32) -> Self {
        self.expression("ct", |data| {
            data.number_be(2, Tracked::Zone as u32).bytes(3, &[0]).number_be(4, register(from))
        })
    }

    /// Turns network order into the machine's, or back.
    pub(crate) fn swap(self, at: u32, size: u32) -> Self {
        self.expression("byteorder", |data| {
            data.number_be(1, register(at))
                .number_be(2, register(at))
                .number_be(3, 0)
                .number_be(4, size)
                .number_be(5, size)
        })
    }

    /// The packet is for an address of the namespace itself.
    pub(crate) fn for_here(self) -> Self {
        self.routed_as(libc::RTN_LOCAL)
    }

    /// Nobody has the address that the packet is for. For IPv4 the kernel tells only its own
    /// addresses from others', and where a packet would leave.
    pub(crate) fn for_nobody(self, family: Family) -> Self {
        match family {
            Family::V4 => self
                .routed_as(libc::RTN_UNICAST)
                .destination_route(FIB_LINK)
                .is(0, &0u32.to_ne_bytes()),
            Family::V6 => self.routed_as(libc::RTN_UNREACHABLE),
        }
    }

    /// Nobody with this source is reached over the link that the packet came by.
    pub(crate) fn source_lies_elsewhere(self) -> Self {
        let fib = self.expression("fib", |data| {
            data.number_be(1, register(0))
                .number_be(2, FIB_OUT_LINK)
                .number_be(3, FIB_SOURCE | FIB_IN_LINK | FIB_PRESENT)
        });
        fib.is(0, &[0])
    }

    fn routed_as(self, kind: u8) -> Self {
        self.destination_route(FIB_ADDRESS_TYPE).is(0, &u32::from(kind).to_ne_bytes())
    }

    fn destination_route(self, asked: u32) -> Self {
        self.expression("fib", |data| {
            data.number_be(1, register(0)).number_be(2, asked).number_be(3, FIB_DESTINATION)
        })
    }

    pub(crate) fn lead_to(self, family: Family, address: u32, port: Option<u32>) -> Self {
        self.translate(1, family, address, port)
    }

    pub(crate) fn come_from(self, family: Family, address: u32) -> Self {
        self.translate(0, family, address, None)
    }

    fn translate(self, kind: u32, family: Family, address: u32, port: Option<u32>) -> Self {
        self.expression("nat", |data| {
            let data = data
                .number_be(1, kind)
                .number_be(2, u32::from(family.number()))
                .number_be(3, register(address));
            match port {
                Some(port) => data.number_be(5, register(port)),
                None => data,
            }
        })
    }

    pub(crate) fn masquerade(self) -> Self {
        self.expression("masq", |data| data)
    }

    pub(crate) fn untracked(self) -> Self {
        self.expression("notrack", |data| data)
    }

    /// Time-outs of a new connection.
    pub(crate) fn time_outs(self, name: &str) -> Self {
        self.expression("objref", |data| data.number_be(1, OBJECT_TIME_OUT).text(2, name))
    }

    /// One more for the counter.
    pub(crate) fn count(self, name: &str) -> Self {
        self.expression("objref", |data| data.number_be(1, OBJECT_COUNTER).text(2, name))
    }

    /// Refused, and said so.
    pub(crate) fn reject(self) -> Self {
        self.expression("reject", |data| {
            data.number_be(1, REJECT_ANY_FAMILY).bytes(2, &[REJECT_PROHIBITED])
        })
    }

    /// A connection is refused as by a closed port.
    pub(crate) fn reset(self) -> Self {
        self.expression("reject", |data| data.number_be(1, REJECT_RESET).bytes(2, &[0]))
    }

    pub(crate) fn accept(self) -> Self {
        self.verdict(1, None)
    }

    pub(crate) fn drop(self) -> Self {
        self.verdict(0, None)
    }

    pub(crate) fn jump(self, chain: &str) -> Self {
        self.verdict(JUMP, Some(chain))
    }

    pub(crate) fn leave(self) -> Self {
        self.verdict(RETURN, None)
    }

    fn verdict(self, code: i32, chain: Option<&str>) -> Self {
        self.expression("immediate", |data| {
            data.number_be(1, VERDICT_REGISTER).nested(2, |data| verdict(data, code, chain))
        })
    }
}

/// The attributes of a verdict, also as a map's value.
pub(crate) fn verdict(data: Message, code: i32, chain: Option<&str>) -> Message {
    data.nested(VERDICT, |data| {
        let data = data.number_be(1, code as u32);
        match chain {
            Some(chain) => data.text(2, chain),
            None => data,
        }
    })
}

fn register(number: u32) -> u32 {
    FIRST_REGISTER + number
}

/// A link's name as a register holds it.
fn padded(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

pub(crate) const NEW: u32 = 8;
pub(crate) const ESTABLISHED: u32 = 2;
pub(crate) const RELATED: u32 = 4;

pub(crate) const GOTO: i32 = -4;
const JUMP: i32 = -3;
const RETURN: i32 = -5;

const TCP_FLAGS_OFFSET: u32 = 13;
const TCP_FIN: u8 = 1 << 0;
const TCP_SYN: u8 = 1 << 1;
const TCP_RST: u8 = 1 << 2;
const TCP_ACK: u8 = 1 << 4;

const STATUS_DESTINATION_TRANSLATED: u32 = 1 << 5;
const FIB_LINK: u32 = 1;
const FIB_ADDRESS_TYPE: u32 = 3;
const FIB_OUT_LINK: u32 = 1;
const FIB_SOURCE: u32 = 1 << 0;
const FIB_DESTINATION: u32 = 1 << 1;
const FIB_IN_LINK: u32 = 1 << 3;
const FIB_PRESENT: u32 = 1 << 5;
const CHECKSUM_INTERNET: u32 = 1;
const LOOKUP_INVERTED: u32 = 1;
const DYNSET_UPDATE: u32 = 1;
const REJECT_RESET: u32 = 1;
const REJECT_ANY_FAMILY: u32 = 2;
const REJECT_PROHIBITED: u8 = 3;
pub(crate) const OBJECT_COUNTER: u32 = 1;
pub(crate) const OBJECT_TIME_OUT: u32 = 7;

const FIRST_REGISTER: u32 = 8;
const VERDICT_REGISTER: u32 = 0;

pub(crate) const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
pub(crate) const VALUE: u16 = 1;
pub(crate) const VERDICT: u16 = 2;
