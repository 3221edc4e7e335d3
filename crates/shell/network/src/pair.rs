//! The pair of links between a namespace of ours and a container's.
//!
//! Owns: making one, and making one ahead of time that is claimed later.
//! Does not know: what leads to it.
//! Invariant: our end is up when a pair is laid; the container's is set up from inside, after it.
//! What is prepared is all up.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netplan::{GATEWAY_HARDWARE, Hardware, LocalLink};

use crate::container::Interface;
use crate::namespace::enter;
use crate::netlink::{CREATE, EXCLUSIVE, Message};
use crate::route::{self, Link, RouteSocket, link_header};
use crate::space::Space;
use crate::spare::Planned;

/// One end of a pair in the making.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PairEnd<'a> {
    pub(crate) name: &'a str,
    /// Zero: the kernel's choice.
    pub(crate) hardware: Hardware,
    pub(crate) mtu: u32,
    /// `None`: where the request is made.
    pub(crate) namespace: Option<&'a OwnedFd>,
}

/// A pair as a container has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair<'a> {
    pub(crate) end: &'a LocalLink,
    pub(crate) interface: &'a Interface,
    pub(crate) alias: &'a str,
}

impl Pair<'_> {
    /// Makes it. What is in its way is of an earlier namespace of the container.
    pub(crate) fn lay(self, space: &mut Space, namespace: &OwnedFd) -> io::Result<()> {
        let Self { end, interface, alias } = self;
        let near = PairEnd {
            name: &end.link,
            hardware: GATEWAY_HARDWARE,
            mtu: interface.mtu,
            namespace: None,
        };
        let far = PairEnd {
            name: &interface.name,
            hardware: end.hardware,
            mtu: interface.mtu,
            namespace: Some(namespace),
        };
        // Nobody on a network sends with another's address; the mesh has a rule for both families.
        let strict = end.network.is_some();
        let all = vec![
            add_pair(&near, &far),
            route::quiet(0, strict).text(libc::IFLA_IFNAME, &end.link),
            route::dress(0, alias, interface.mtu).text(libc::IFLA_IFNAME, &end.link),
        ];
        match space.route.batch(all.clone(), &[]) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                if let Some(near) = space.index_of(&end.link)? {
                    space.route.batch(vec![route::delete_link(near)], route::ABSENT)?;
                }
                space.route.batch(all, &[])
            }
            result => result,
        }
    }
}

/// Makes a pair between the namespace `place` and that of `inside`, for whichever container that
/// will be. Answers number and address of the container's end.
pub(crate) fn prepare(
    place: &OwnedFd,
    planned: &Planned,
    namespace: &OwnedFd,
    inside: &mut Space,
) -> io::Result<(u32, Hardware)> {
    let Planned { network, near, name, mtu } = planned;
    let ours = PairEnd { name: near, hardware: GATEWAY_HARDWARE, mtu: *mtu, namespace: None };
    let far = PairEnd { name, hardware: KERNELS_CHOICE, namespace: Some(namespace), ..ours };
    let named = |message: Message| message.text(libc::IFLA_IFNAME, near);
    let strict = network.is_some();
    let all = vec![add_pair(&ours, &far), named(route::quiet(0, strict)), named(route::set_up(0))];
    let mut outside = enter(place, RouteSocket::open)?;
    outside.batch(all, &[])?;
    let far = inside.learn_links()?.into_iter().find(|link| link.name == *name);
    let far = far.ok_or(io::ErrorKind::NotFound)?;
    inside.route.request(route::set_up(far.index))?;
    // The kernel sees the other end's carrier when it is asked.
    outside.index_of(near)?;
    Ok((far.index, far.hardware))
}

/// Brings a container's end up. One of ours that was laid before may not be as it should be.
pub(crate) fn set_up(link: &Link, ours: Option<Hardware>, interface: &Interface) -> Message {
    match ours {
        Some(hardware) if (link.mtu, link.hardware) != (interface.mtu, hardware) => {
            dress(link.index, hardware, interface.mtu)
        }
        _ => route::set_up(link.index),
    }
}

fn dress(link: u32, hardware: Hardware, mtu: u32) -> Message {
    route::set_up(link).number(libc::IFLA_MTU, mtu).bytes(libc::IFLA_ADDRESS, &hardware)
}

/// Makes a pair of links. A peer in another namespace is set up from inside. Of one queue, which
/// is all that is used: the kernel would take others away again, and wait for it.
pub(crate) fn add_pair(near: &PairEnd<'_>, far: &PairEnd<'_>) -> Message {
    let end = |message: Message, end: &PairEnd<'_>| {
        let message = message
            .text(libc::IFLA_IFNAME, end.name)
            .number(libc::IFLA_MTU, end.mtu)
            .number(libc::IFLA_NUM_TX_QUEUES, 1)
            .number(libc::IFLA_NUM_RX_QUEUES, 1);
        let message = match end.hardware {
            KERNELS_CHOICE => message,
            hardware => message.bytes(libc::IFLA_ADDRESS, &hardware),
        };
        match end.namespace {
            Some(fd) => message.number(libc::IFLA_NET_NS_FD, fd.as_raw_fd() as u32),
            None => message,
        }
    };
    let message = Message::new(libc::RTM_NEWLINK, CREATE | EXCLUSIVE, &link_header(0, 0));
    end(message, near).nested(libc::IFLA_LINKINFO, |info| {
        info.text(libc::IFLA_INFO_KIND, "veth").nested(libc::IFLA_INFO_DATA, |data| {
            data.nested(VETH_INFO_PEER, |peer| end(peer.raw(&link_header(0, 0)), far))
        })
    })
}

/// Random and locally administered.
const KERNELS_CHOICE: Hardware = [0; 6];

const VETH_INFO_PEER: u16 = 1;
