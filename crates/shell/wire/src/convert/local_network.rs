//! Networks that a node has for itself.
//!
//! Owns: their conversions. Does not know: what becomes of them.
//! Invariant: what goes out and comes back is the same.

use base::Timestamp;
use types::{Fault, LocalNetwork};

use super::{all, id, required};
use crate::v1;

impl From<&LocalNetwork> for v1::LocalNetwork {
    fn from(network: &LocalNetwork) -> Self {
        Self {
            id: crate::bytes_of(network.id.0),
            created_at: network.created.0,
            spec: Some((&network.spec).into()),
            subnets: network.subnets.iter().map(Into::into).collect(),
            swarm: network.swarm,
        }
    }
}

impl TryFrom<v1::LocalNetwork> for LocalNetwork {
    type Error = Fault;

    fn try_from(network: v1::LocalNetwork) -> Result<Self, Fault> {
        Ok(Self {
            id: id(&network.id, "network.id")?,
            created: Timestamp(network.created_at),
            spec: required(network.spec, "network.spec")?.try_into()?,
            subnets: all(network.subnets)?,
            swarm: network.swarm,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_comes_back_as_it_went() {
        let mut network = LocalNetwork::predefined_bridge();
        network.created = Timestamp(77);
        network.swarm = true;
        network.subnets = vec![types::Subnet::new("10.1.0.0/16".parse().unwrap(), None, None)];
        let aux = [("router".to_owned(), "10.1.0.9".parse().unwrap())].into();
        network.spec.ipam = vec![types::IpamPool { aux, ..types::IpamPool::default() }];
        let there = v1::LocalNetwork::from(&network);
        assert_eq!(LocalNetwork::try_from(there.clone()), Ok(network));
        assert!(LocalNetwork::try_from(v1::LocalNetwork { spec: None, ..there }).is_err());
    }
}
