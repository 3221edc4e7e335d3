//! What a running task is given when somebody connects it to a further network.
//!
//! Owns: its addresses there, and whether the network has to become larger for them.
//! Does not know: who asks, and whether the task may be connected.
//! Invariant: the addresses are free in the snapshot that was looked at; `apply` has the last word.

use std::net::IpAddr;

use base::Timestamp;
use state::{ChangeSet, Snapshot};
use types::{Attachment, ErrorCode, Family, Fault, Network};

use crate::give::Given;
use crate::network;

/// What connecting comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Connecting {
    With(Attachment),
    /// The network is full: this makes it larger, then ask again.
    After(ChangeSet),
}

/// Addresses for one more task on a network: those that are asked for, else the next free ones.
///
/// # Errors
/// When an address is no task's to have, or taken; or when none is left.
pub fn connect(
    view: &Snapshot,
    now: Timestamp,
    network: &Network,
    asked: &[IpAddr],
) -> Result<Connecting, Fault> {
    let name = &network.spec.name;
    if !network.is_allocated() {
        let message = format!("network {name} has no subnet: the pools are used up");
        return Err(Fault::new(ErrorCode::FailedPrecondition, message));
    }
    for address in asked {
        if !network.subnets.iter().any(|subnet| subnet.may_hold(*address)) {
            let message = format!("{address} is no address that a container of {name} may have");
            return Err(Fault::invalid(flag(*address), message));
        }
    }
    let mut given = Given::new(view, now);
    let mut attachment = Attachment::bare(network.id);
    for family in Family::ALL {
        if !network.subnets.iter().any(|subnet| subnet.family() == family) {
            continue;
        }
        let asked = asked.iter().find(|address| Family::of(**address) == family).copied();
        let address = match asked {
            Some(address) => {
                let promised = view.fixed_for(network.id, address).is_some();
                if promised || !given.take(network.id, address) {
                    let message = format!("Address already in use: {address}");
                    let fault = Fault::invalid(flag(address), message);
                    return Err(Fault { code: ErrorCode::Conflict, ..fault });
                }
                address
            }
            None => match given.next(network, family) {
                Some(address) => address,
                None => return larger(view, network, family),
            },
        };
        attachment.set(address);
    }
    Ok(Connecting::With(attachment))
}

fn larger(view: &Snapshot, network: &Network, family: Family) -> Result<Connecting, Fault> {
    match network::extend(view, network, family) {
        Some(atom) => Ok(Connecting::After(atom)),
        None => {
            let (name, family) = (&network.spec.name, family.name());
            let message = format!("network {name} has no free {family} address left");
            Err(Fault::new(ErrorCode::FailedPrecondition, message))
        }
    }
}

const fn flag(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "--ip" } else { "--ip6" }
}
