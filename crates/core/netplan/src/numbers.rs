//! Hardware and link addresses, made of the number of a node.
//!
//! Owns: how 24 bits become addresses, and the mark of a connection that came through another node.
//! Does not know: underlay addresses; they may change, these do not.
//! Invariant: the last four bytes of a node's hardware address are the mark of its connections, so
//! that marks become addresses, and addresses marks, by copying.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::Ipv6Net;

use crate::state::Hardware;

/// Of the node's end of every VXLAN device; locally administered.
#[must_use]
pub const fn node_hardware(number: u32) -> Hardware {
    let [_, a, b, c] = number.to_be_bytes();
    [0x02, 0x53, (MARK >> 24) as u8, a, b, c]
}

/// The mark of connections that the node with this number sent here.
#[must_use]
pub const fn mark_of(number: u32) -> u32 {
    MARK | number & 0x00ff_ffff
}

/// The next hop that stands for a node, for both families.
#[must_use]
pub const fn link_v6(number: u32) -> Ipv6Addr {
    let [_, a, b, c] = number.to_be_bytes();
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0053, 0, a as u16, (b as u16) << 8 | c as u16)
}

/// The number of the node that an address stands for.
#[must_use]
pub fn number_of(link: Ipv6Addr) -> Option<u32> {
    let [.., a, b, c] = link.octets();
    let number = u32::from_be_bytes([0, a, b, c]);
    (number != 0 && link == link_v6(number)).then_some(number)
}

/// Where ICMP errors of a node come from. Nobody routes this range, and no packet with such a
/// destination leaves a sandbox.
#[must_use]
pub const fn link_v4(number: u32) -> Ipv4Addr {
    let [_, a, b, c] = number.to_be_bytes();
    Ipv4Addr::new(240, a, b, c)
}

/// A node's address inside the tunnel of encrypted networks; its namespace holds no others.
#[must_use]
pub const fn tunnel_v4(number: u32) -> Ipv4Addr {
    let [_, a, b, c] = number.to_be_bytes();
    Ipv4Addr::new(10, a, b, c)
}

/// Of a container's own end of a link.
#[must_use]
pub fn task_hardware(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> Hardware {
    let tail = match (v4, v6) {
        (Some(v4), _) => v4.octets(),
        (None, Some(v6)) => {
            let bits = v6.octets();
            [bits[12], bits[13], bits[14], bits[15]]
        }
        (None, None) => [0; 4],
    };
    [0x02, 0x42, tail[0], tail[1], tail[2], tail[3]]
}

/// What every mark of ours has in its upper byte.
pub const MARK: u32 = 0x0100_0000;
pub const MARK_MASK: u32 = 0xff00_0000;

/// Of our end of every link to a container; each sees its own only.
pub const GATEWAY_HARDWARE: Hardware = [0x02, 0x53, 0x68, 0x6f, 0x61, 0x6c];

/// Of the ends of the link between host and mesh.
pub const HOST_HARDWARE: Hardware = [0x02, 0x53, 0x68, 0x6f, 0x00, 0x01];
pub const MESH_HARDWARE: Hardware = [0x02, 0x53, 0x68, 0x6f, 0x00, 0x02];

/// All that [`link_v6`] makes: nodes answer each other's probes on the device itself.
pub(crate) const LINK_NET: Ipv6Net =
    Ipv6Net::new_assert(Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0053, 0, 0, 0), 96);

/// A next hop that no node has: packets to it get the hardware address of their mark on their way
/// out.
pub const RETURN_HOP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x0053, 0xffff, 0, 0);
pub const RETURN_HARDWARE: Hardware = [0x02, 0x53, 0xff, 0xff, 0xff, 0xff];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_the_tail_of_the_hardware_address() {
        for number in [1, 255, 65_536, 0x00ff_fffe] {
            let hardware = node_hardware(number);
            assert_eq!(hardware[2..], mark_of(number).to_be_bytes());
            assert_eq!(mark_of(number) & MARK_MASK, MARK);
            assert_ne!(link_v6(number), RETURN_HOP);
            assert_eq!(number_of(link_v6(number)), Some(number));
            assert!(LINK_NET.contains(&link_v6(number)) && !LINK_NET.contains(&RETURN_HOP));
        }
        for other in ["::", "fe80::53:0:0:0", "fe80::1", "fd00::53:0:0:1", "fe80::53:ffff:0:0"] {
            assert_eq!(number_of(other.parse().unwrap()), None, "{other}");
        }
        assert_eq!(link_v6(0x0001_0203).to_string(), "fe80::53:0:1:203");
        assert_eq!(link_v4(7).to_string(), "240.0.0.7");
        assert_eq!(tunnel_v4(0x0001_0203).to_string(), "10.1.2.3");
    }
}
