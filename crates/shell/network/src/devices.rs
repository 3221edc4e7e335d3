//! Links of the kinds that networks of one node are made of.
//!
//! Owns: the messages that make them: bridges and their ports, macvlan, ipvlan, VLANs, dummies.
//! Does not know: which networks there are.
//! Invariant: a link in the host's namespace that we made says so, and no other does, so that
//! nobody else's is removed.

use std::os::fd::{AsRawFd, OwnedFd};

use netplan::Hardware;
use types::{LocalNetwork, NetworkDriver};

use crate::netlink::{CREATE, EXCLUSIVE, Message};
use crate::route::{self, link_header};

/// A link in the host's namespace that other links are ports or parts of.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Device {
    Bridge(Hardware),
    Dummy,
    Vlan { parent: u32, tag: u16 },
}

pub(crate) fn add_device(name: &str, device: Device) -> Message {
    let message = new_link().text(libc::IFLA_IFNAME, name);
    let (message, kind) = match device {
        Device::Bridge(hardware) => (message.bytes(libc::IFLA_ADDRESS, &hardware), "bridge"),
        Device::Dummy => (message, "dummy"),
        Device::Vlan { parent, .. } => (message.number(libc::IFLA_LINK, parent), "vlan"),
    };
    message.nested(libc::IFLA_LINKINFO, |info| {
        let info = info.text(libc::IFLA_INFO_KIND, kind);
        match device {
            Device::Vlan { tag, .. } => {
                info.nested(libc::IFLA_INFO_DATA, |data| data.bytes(VLAN_ID, &tag.to_ne_bytes()))
            }
            Device::Bridge(_) | Device::Dummy => info,
        }
    })
}

/// Says whose a link is; kernels do not take that when it is made.
pub(crate) fn own(link: u32, alias: &str) -> Message {
    Message::new(libc::RTM_NEWLINK, 0, &link_header(link, 0)).text(libc::IFLA_IFALIAS, alias)
}

/// A link that is down gets another name.
pub(crate) fn rename(link: u32, name: &str) -> Message {
    Message::new(libc::RTM_NEWLINK, 0, &link_header(link, 0)).text(libc::IFLA_IFNAME, name)
}

/// The same for one that is up, which kernels before 6.2 refuse.
pub(crate) fn rename_up(link: u32, name: &str) -> [Message; 2] {
    [route::set_down(link), route::set_up(link).text(libc::IFLA_IFNAME, name)]
}

/// Makes a link a port of a bridge.
pub(crate) fn plug(link: u32, bridge: u32) -> Message {
    Message::new(libc::RTM_NEWLINK, 0, &link_header(link, 0)).number(libc::IFLA_MASTER, bridge)
}

/// Whether a port of a bridge reaches other such ports, or only what is none.
pub(crate) fn isolate(link: u32, isolated: bool) -> Message {
    let message = Message::new(libc::RTM_NEWLINK, 0, &link_header(link, 0));
    message.nested(libc::IFLA_LINKINFO, |info| {
        info.text(INFO_PORT_KIND, "bridge")
            .nested(INFO_PORT_DATA, |data| data.bytes(PORT_ISOLATED, &[u8::from(isolated)]))
    })
}

/// A part of a link of the host, in a namespace of a container's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<'a> {
    pub(crate) name: &'a str,
    pub(crate) parent: u32,
    /// Zero: the kernel's choice.
    pub(crate) hardware: Hardware,
    /// Zero: the parent's.
    pub(crate) mtu: u32,
    /// `None`: where the request is made.
    pub(crate) namespace: Option<&'a OwnedFd>,
}

/// Makes such a part, in the mode of the network.
pub(crate) fn add_part(network: &LocalNetwork, part: &Part<'_>) -> Message {
    let mut message =
        new_link().text(libc::IFLA_IFNAME, part.name).number(libc::IFLA_LINK, part.parent);
    if part.hardware != [0; 6] && has_own_hardware(network) {
        message = message.bytes(libc::IFLA_ADDRESS, &part.hardware);
    }
    if part.mtu != 0 {
        message = message.number(libc::IFLA_MTU, part.mtu);
    }
    if let Some(namespace) = part.namespace {
        message = message.number(libc::IFLA_NET_NS_FD, namespace.as_raw_fd() as u32);
    }
    message.nested(libc::IFLA_LINKINFO, |info| {
        let info = info.text(libc::IFLA_INFO_KIND, network.spec.driver.name());
        info.nested(libc::IFLA_INFO_DATA, |data| match network.spec.driver {
            NetworkDriver::Ipvlan => data
                .bytes(IPVLAN_MODE, &ipvlan_mode(network.mode()).to_ne_bytes())
                .bytes(IPVLAN_FLAGS, &ipvlan_flag(network.flag()).to_ne_bytes()),
            _ => data.number(MACVLAN_MODE, macvlan_mode(network.mode())),
        })
    })
}

/// Its containers have hardware addresses of their own on the parent's network.
pub(crate) fn has_own_hardware(network: &LocalNetwork) -> bool {
    match network.spec.driver {
        NetworkDriver::Bridge => true,
        NetworkDriver::Macvlan => network.mode() != "passthru",
        _ => false,
    }
}

fn macvlan_mode(word: &str) -> u32 {
    match word {
        "private" => 1,
        "vepa" => 2,
        "passthru" => 8,
        _ => 4,
    }
}

fn ipvlan_mode(word: &str) -> u16 {
    match word {
        "l3" => 1,
        "l3s" => 2,
        _ => 0,
    }
}

fn ipvlan_flag(word: &str) -> u16 {
    match word {
        "private" => 1,
        "vepa" => 2,
        _ => 0,
    }
}

fn new_link() -> Message {
    Message::new(libc::RTM_NEWLINK, CREATE | EXCLUSIVE, &link_header(0, 0))
}

const VLAN_ID: u16 = 1;
const MACVLAN_MODE: u16 = 1;
const IPVLAN_MODE: u16 = 1;
const IPVLAN_FLAGS: u16 = 2;
const INFO_PORT_KIND: u16 = 4;
const INFO_PORT_DATA: u16 = 5;
const PORT_ISOLATED: u16 = 33;
