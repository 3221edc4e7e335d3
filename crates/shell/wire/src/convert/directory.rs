//! What a node is told of its networks.
//!
//! Owns: the conversions of the directory's parts.
//! Does not know: how an update is cut into messages.
//! Invariant: a part that goes out and comes back is the same; one that makes no sense is refused
//! with the field.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base::Id;
use bytes::Bytes;
use types::{
    DirectoryUpdate, EndpointMode, EndpointPart, Fault, NetworkDriver, NetworkPart, OwnPart,
    PeerPart, PortPart, PortProtocol, PublishMode, ServicePart,
};

use super::{all, id, malformed, octets, optional_id, required, unknown};
use crate::{bytes_of, v1};

impl From<&DirectoryUpdate> for v1::Directory {
    fn from(update: &DirectoryUpdate) -> Self {
        Self {
            epoch: 0,
            index: update.index,
            full: update.full,
            more: false,
            own: update.own.as_ref().map(Into::into),
            networks: update.networks.iter().map(Into::into).collect(),
            removed_networks: update.removed_networks.iter().map(|id| bytes_of(id.0)).collect(),
            peers: update.peers.iter().map(Into::into).collect(),
            removed_peers: update.removed_peers.iter().map(|(n, id)| removed(n.0, id.0)).collect(),
            services: update.services.iter().map(Into::into).collect(),
            removed_services: update
                .removed_services
                .iter()
                .map(|(n, id)| removed(n.0, id.0))
                .collect(),
            endpoints: update.endpoints.iter().map(Into::into).collect(),
            removed_endpoints: update
                .removed_endpoints
                .iter()
                .map(|(n, id)| removed(n.0, id.0))
                .collect(),
        }
    }
}

impl TryFrom<v1::Directory> for DirectoryUpdate {
    type Error = Fault;

    fn try_from(update: v1::Directory) -> Result<Self, Fault> {
        let network = |bytes: &Bytes| id(bytes, "directory.removed_networks");
        Ok(Self {
            full: update.full,
            index: update.index,
            own: update.own.map(TryInto::try_into).transpose()?,
            networks: all(update.networks)?,
            removed_networks: update
                .removed_networks
                .iter()
                .map(network)
                .collect::<Result<_, _>>()?,
            peers: all(update.peers)?,
            removed_peers: removals(&update.removed_peers)?,
            services: all(update.services)?,
            removed_services: removals(&update.removed_services)?,
            endpoints: all(update.endpoints)?,
            removed_endpoints: removals(&update.removed_endpoints)?,
        })
    }
}

fn removed(network: Id, id: Id) -> v1::RemovedPart {
    v1::RemovedPart { network: bytes_of(network), id: bytes_of(id) }
}

fn removals<N: From<Id>, T: From<Id>>(parts: &[v1::RemovedPart]) -> Result<Vec<(N, T)>, Fault> {
    let one = |part: &v1::RemovedPart| {
        Ok((id(&part.network, "removed.network")?, id(&part.id, "removed.id")?))
    };
    parts.iter().map(one).collect()
}

impl From<&OwnPart> for v1::OwnPart {
    fn from(own: &OwnPart) -> Self {
        Self {
            node: bytes_of(own.node.0),
            number: own.number,
            data_path_port: own.data_path_port.into(),
            encryption: Some((&own.encryption).into()),
        }
    }
}

impl TryFrom<v1::OwnPart> for OwnPart {
    type Error = Fault;

    fn try_from(own: v1::OwnPart) -> Result<Self, Fault> {
        Ok(Self {
            node: id(&own.node, "own.node")?,
            number: own.number,
            data_path_port: port(own.data_path_port, "own.data_path_port")?,
            encryption: required(own.encryption, "own.encryption")?.try_into()?,
        })
    }
}

impl From<&NetworkPart> for v1::NetworkPart {
    fn from(network: &NetworkPart) -> Self {
        let subnet = |(net, gateway): &(ipnet::IpNet, IpAddr)| v1::SubnetPart {
            net: net.to_string(),
            gateway: address_bytes(*gateway),
        };
        Self {
            id: bytes_of(network.id.0),
            name: network.name.clone(),
            driver: network.driver as u32,
            vni: network.vni,
            mtu: network.mtu,
            ingress: network.ingress,
            internal: network.internal,
            encrypted: network.encrypted,
            subnets: network.subnets.iter().map(subnet).collect(),
            options: network.options.clone(),
            config_from: network.config_from.clone(),
        }
    }
}

impl TryFrom<v1::NetworkPart> for NetworkPart {
    type Error = Fault;

    fn try_from(network: v1::NetworkPart) -> Result<Self, Fault> {
        let subnet = |part: v1::SubnetPart| {
            let net = part.net.parse();
            let net = net.map_err(|_| malformed("network.subnets.net", "is not a subnet"))?;
            Ok((net, address(&part.gateway, "network.subnets.gateway")?))
        };
        let driver = number(network.driver);
        Ok(Self {
            id: id(&network.id, "network.id")?,
            name: network.name,
            driver: NetworkDriver::from_number(driver)
                .ok_or_else(|| unknown("network.driver", driver))?,
            vni: network.vni,
            mtu: network.mtu,
            ingress: network.ingress,
            internal: network.internal,
            encrypted: network.encrypted,
            subnets: network.subnets.into_iter().map(subnet).collect::<Result<_, Fault>>()?,
            options: network.options,
            config_from: network.config_from,
        })
    }
}

impl From<&PeerPart> for v1::PeerPart {
    fn from(peer: &PeerPart) -> Self {
        Self {
            network: bytes_of(peer.network.0),
            node: bytes_of(peer.node.0),
            name: peer.name.clone(),
            number: peer.number,
            address: address_bytes(peer.address),
            mtu: peer.mtu,
            encryption: peer.encryption.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<v1::PeerPart> for PeerPart {
    type Error = Fault;

    fn try_from(peer: v1::PeerPart) -> Result<Self, Fault> {
        Ok(Self {
            network: id(&peer.network, "peer.network")?,
            node: id(&peer.node, "peer.node")?,
            name: peer.name,
            number: peer.number,
            address: address(&peer.address, "peer.address")?,
            mtu: peer.mtu,
            encryption: peer.encryption.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<&ServicePart> for v1::ServicePart {
    fn from(service: &ServicePart) -> Self {
        Self {
            network: bytes_of(service.network.0),
            service: bytes_of(service.service.0),
            name: service.name.clone(),
            aliases: service.aliases.clone(),
            mode: service.mode as u32,
            v4: v4_bytes(service.v4),
            v6: v6_bytes(service.v6),
            ports: service.ports.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::ServicePart> for ServicePart {
    type Error = Fault;

    fn try_from(service: v1::ServicePart) -> Result<Self, Fault> {
        let mode = match service.mode {
            1 => EndpointMode::Vip,
            2 => EndpointMode::Dnsrr,
            other => return Err(unknown("service.mode", number(other))),
        };
        Ok(Self {
            network: id(&service.network, "service.network")?,
            service: id(&service.service, "service.service")?,
            name: service.name,
            aliases: service.aliases,
            mode,
            v4: v4(&service.v4, "service.v4")?,
            v6: v6(&service.v6, "service.v6")?,
            ports: all(service.ports)?,
        })
    }
}

impl From<&PortPart> for v1::PortPart {
    fn from(part: &PortPart) -> Self {
        Self {
            name: part.name.clone(),
            protocol: part.protocol as u32,
            target: part.target.into(),
            published: part.published.into(),
            mode: part.mode as u32,
            host: part.host.clone(),
        }
    }
}

impl TryFrom<v1::PortPart> for PortPart {
    type Error = Fault;

    fn try_from(part: v1::PortPart) -> Result<Self, Fault> {
        let protocol = number(part.protocol);
        let mode = match part.mode {
            1 => PublishMode::Ingress,
            2 => PublishMode::Host,
            other => return Err(unknown("port.mode", number(other))),
        };
        Ok(Self {
            name: part.name,
            protocol: PortProtocol::from_number(protocol)
                .ok_or_else(|| unknown("port.protocol", protocol))?,
            target: port(part.target, "port.target")?,
            published: port(part.published, "port.published")?,
            mode,
            host: part.host,
        })
    }
}

impl From<&EndpointPart> for v1::EndpointPart {
    fn from(endpoint: &EndpointPart) -> Self {
        Self {
            network: bytes_of(endpoint.network.0),
            task: bytes_of(endpoint.task.0),
            service: endpoint.service.map(|id| bytes_of(id.0)).unwrap_or_default(),
            node: bytes_of(endpoint.node.0),
            number: endpoint.number,
            v4: v4_bytes(endpoint.v4),
            v6: v6_bytes(endpoint.v6),
            names: endpoint.names.clone(),
            serving: endpoint.serving,
        }
    }
}

impl TryFrom<v1::EndpointPart> for EndpointPart {
    type Error = Fault;

    fn try_from(endpoint: v1::EndpointPart) -> Result<Self, Fault> {
        Ok(Self {
            network: id(&endpoint.network, "endpoint.network")?,
            task: id(&endpoint.task, "endpoint.task")?,
            service: optional_id(&endpoint.service, "endpoint.service")?,
            node: id(&endpoint.node, "endpoint.node")?,
            number: endpoint.number,
            v4: v4(&endpoint.v4, "endpoint.v4")?,
            v6: v6(&endpoint.v6, "endpoint.v6")?,
            names: endpoint.names,
            serving: endpoint.serving,
        })
    }
}

fn number(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

fn port(value: u32, field: &str) -> Result<u16, Fault> {
    u16::try_from(value).map_err(|_| malformed(field, "is not a port"))
}

fn address_bytes(address: IpAddr) -> Bytes {
    match address {
        IpAddr::V4(address) => v4_bytes(Some(address)),
        IpAddr::V6(address) => v6_bytes(Some(address)),
    }
}

fn v4_bytes(address: Option<Ipv4Addr>) -> Bytes {
    address.map(|address| Bytes::copy_from_slice(&address.octets())).unwrap_or_default()
}

fn v6_bytes(address: Option<Ipv6Addr>) -> Bytes {
    address.map(|address| Bytes::copy_from_slice(&address.octets())).unwrap_or_default()
}

fn address(bytes: &[u8], field: &str) -> Result<IpAddr, Fault> {
    match bytes.len() {
        4 => v4(bytes, field)?.map(IpAddr::V4),
        _ => v6(bytes, field)?.map(IpAddr::V6),
    }
    .ok_or_else(|| malformed(field, "is missing"))
}

fn v4(bytes: &[u8], field: &str) -> Result<Option<Ipv4Addr>, Fault> {
    octets::<4>(bytes, field).map(|octets| octets.map(Ipv4Addr::from))
}

fn v6(bytes: &[u8], field: &str) -> Result<Option<Ipv6Addr>, Fault> {
    octets::<16>(bytes, field).map(|octets| octets.map(Ipv6Addr::from))
}

#[cfg(test)]
mod tests {
    use types::{
        NetworkId, NetworkKey, NetworkKeys, NodeId, OwnEncryption, PeerEncryption, ServiceId,
        TaskId,
    };

    use super::*;

    fn some<T: From<Id>>(number: u128) -> T {
        T::from(Id::from_u128(number).unwrap())
    }

    fn update() -> DirectoryUpdate {
        let network: NetworkId = some(9);
        let (node, service, task): (NodeId, ServiceId, TaskId) = (some(2), some(3), some(4));
        let encryption = OwnEncryption { generation: 3, ports: [7, 8], keepalive: true };
        let keys = NetworkKeys::from([(3, NetworkKey([5; 32]))]);
        let subnet = ("10.0.1.0/24".parse().unwrap(), "10.0.1.1".parse().unwrap());
        let (v4, v6) = ("10.0.1.5".parse().ok(), "fd00::5".parse().ok());
        DirectoryUpdate {
            full: true,
            index: 77,
            own: Some(OwnPart { node, number: 5, data_path_port: 4789, encryption }),
            networks: vec![NetworkPart {
                id: network,
                name: "back".into(),
                driver: NetworkDriver::Overlay,
                vni: 4096,
                mtu: 1450,
                ingress: false,
                internal: true,
                encrypted: true,
                subnets: vec![subnet],
                options: [("k".to_owned(), "v".to_owned())].into(),
                config_from: "lan".into(),
            }],
            removed_networks: vec![some(10)],
            peers: vec![PeerPart {
                network,
                node,
                name: "h2".into(),
                number: 6,
                address: "fd00::2".parse().unwrap(),
                mtu: 1400,
                encryption: Some(PeerEncryption { keys, sends_with: 3 }),
            }],
            removed_peers: vec![(network, some(11))],
            services: vec![ServicePart {
                network,
                service,
                name: "web".into(),
                aliases: vec!["www".into()],
                mode: EndpointMode::Dnsrr,
                v4,
                v6,
                ports: vec![PortPart {
                    name: "http".into(),
                    protocol: PortProtocol::Sctp,
                    target: 80,
                    published: 8080,
                    mode: PublishMode::Host,
                    host: "eth0".into(),
                }],
            }],
            removed_services: vec![(network, some(12))],
            endpoints: vec![EndpointPart {
                network,
                task,
                service: None,
                node,
                number: 6,
                v4,
                v6: None,
                names: vec!["web.1".into()],
                serving: true,
            }],
            removed_endpoints: vec![(network, some(13))],
        }
    }

    #[test]
    fn an_update_comes_back_as_it_was() {
        let update = update();
        assert_eq!(DirectoryUpdate::try_from(v1::Directory::from(&update)), Ok(update));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_name() {
        type Break = fn(&mut v1::Directory);
        let broken: [(Break, &str); 6] = [
            (|d| d.peers[0].address = Bytes::new(), "peer.address"),
            (|d| d.endpoints[0].v4 = Bytes::from_static(b"12"), "endpoint.v4"),
            (|d| d.services[0].mode = 9, "service.mode"),
            (|d| d.services[0].ports[0].target = 70_000, "port.target"),
            (|d| d.networks[0].subnets[0].net = "x".into(), "network.subnets.net"),
            (|d| d.removed_networks[0] = Bytes::new(), "directory.removed_networks"),
        ];
        for (change, field) in broken {
            let mut message = v1::Directory::from(&update());
            change(&mut message);
            assert_eq!(DirectoryUpdate::try_from(message).unwrap_err().field, field);
        }
    }
}
