//! Networks, and what tasks and services ask and are given of them.
//!
//! Owns: their conversions, and the words of their enums.
//! Does not know: what is free, or who gives it out.
//! Invariant: what goes out and comes back is the same; a word that is not known is refused.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use types::{
    Attachment, Connection, DataPath, Endpoint, EndpointMode, EndpointSpec, Fault, HostPort,
    IpamPool, Network, NetworkAttachment, NetworkDriver, NetworkSpec, PortBinding, PortProtocol,
    PortSpec, PublishMode, Subnet, TaskNetwork,
};

use super::{all, id, malformed, octets, required};
use crate::v1;

/// A text that must be what its field says.
fn parse<T: FromStr>(text: &str, field: &str, what: &str) -> Result<T, Fault> {
    text.parse().map_err(|_| malformed(field, format!("`{text}` is not {what}")))
}

/// The same, where an empty text is nothing.
fn parse_some<T: FromStr>(text: &str, field: &str, what: &str) -> Result<Option<T>, Fault> {
    if text.is_empty() { Ok(None) } else { parse(text, field, what).map(Some) }
}

fn text<T: ToString>(value: Option<&T>) -> String {
    value.map_or_else(String::new, ToString::to_string)
}

impl From<&NetworkAttachment> for v1::NetworkAttachment {
    fn from(one: &NetworkAttachment) -> Self {
        Self {
            target: one.target.clone(),
            aliases: one.aliases.clone(),
            driver_options: one.driver_options.clone(),
            addresses: one.addresses.iter().map(IpAddr::to_string).collect(),
            vips: one.vips.iter().map(IpAddr::to_string).collect(),
        }
    }
}

impl TryFrom<v1::NetworkAttachment> for NetworkAttachment {
    type Error = Fault;

    fn try_from(one: v1::NetworkAttachment) -> Result<Self, Fault> {
        let addresses = |list: Vec<String>| -> Result<Vec<IpAddr>, Fault> {
            list.iter().map(|text| parse(text, "--network", "an address")).collect()
        };
        Ok(Self {
            target: one.target,
            aliases: one.aliases,
            driver_options: one.driver_options,
            addresses: addresses(one.addresses)?,
            vips: addresses(one.vips)?,
        })
    }
}

impl From<&EndpointSpec> for v1::EndpointSpec {
    fn from(endpoint: &EndpointSpec) -> Self {
        Self {
            mode: endpoint.mode.name().into(),
            ports: endpoint.ports.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::EndpointSpec> for EndpointSpec {
    type Error = Fault;

    fn try_from(endpoint: v1::EndpointSpec) -> Result<Self, Fault> {
        let mode = EndpointMode::from_name(&endpoint.mode).ok_or_else(|| {
            let message = format!("unknown mode `{}`: use vip or dnsrr", endpoint.mode);
            malformed("--endpoint-mode", message)
        })?;
        Ok(Self { mode, ports: all(endpoint.ports)? })
    }
}

impl From<&PortSpec> for v1::PortSpec {
    fn from(port: &PortSpec) -> Self {
        Self {
            name: port.name.clone(),
            protocol: port.protocol.name().into(),
            target: port.target.into(),
            published: port.published.into(),
            publish_mode: port.mode.name().into(),
            host_address: port.host.clone(),
        }
    }
}

impl TryFrom<v1::PortSpec> for PortSpec {
    type Error = Fault;

    fn try_from(port: v1::PortSpec) -> Result<Self, Fault> {
        let protocol = PortProtocol::from_name(&port.protocol).ok_or_else(|| {
            let message = format!("unknown protocol `{}`: use tcp, udp or sctp", port.protocol);
            malformed("--publish", message)
        })?;
        let mode = PublishMode::from_name(&port.publish_mode).ok_or_else(|| {
            let message = format!("unknown mode `{}`: use ingress or host", port.publish_mode);
            malformed("--publish", message)
        })?;
        let (target, published) = (port_number(port.target)?, port_number(port.published)?);
        Ok(Self { name: port.name, protocol, target, published, mode, host: port.host_address })
    }
}

fn port_number(number: u32) -> Result<u16, Fault> {
    let wrong = || malformed("--publish", format!("port {number} is not between 1 and 65535"));
    u16::try_from(number).map_err(|_| wrong())
}

fn protocol(number: u32) -> Result<PortProtocol, Fault> {
    let known = i32::try_from(number).ok().and_then(PortProtocol::from_number);
    known.ok_or_else(|| malformed("protocol", format!("{number} is not known to this version")))
}

impl From<&HostPort> for v1::HostPort {
    fn from(port: &HostPort) -> Self {
        Self {
            protocol: port.protocol as u32,
            target: port.target.into(),
            published: port.published.into(),
            host: port.host.clone(),
        }
    }
}

impl TryFrom<v1::HostPort> for HostPort {
    type Error = Fault;

    fn try_from(port: v1::HostPort) -> Result<Self, Fault> {
        Ok(Self {
            protocol: protocol(port.protocol)?,
            target: port_number(port.target)?,
            published: port_number(port.published)?,
            host: port.host,
        })
    }
}

impl From<&PortBinding> for v1::PortBinding {
    fn from(binding: &PortBinding) -> Self {
        Self {
            protocol: binding.protocol as u32,
            port: binding.port.into(),
            address: binding.address.map_or_else(String::new, |address| address.to_string()),
        }
    }
}

impl TryFrom<v1::PortBinding> for PortBinding {
    type Error = Fault;

    fn try_from(binding: v1::PortBinding) -> Result<Self, Fault> {
        let address = match binding.address.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| malformed("address", "is no IP address"))?),
        };
        let (protocol, port) = (protocol(binding.protocol)?, port_number(binding.port)?);
        Ok(Self { protocol, port, address })
    }
}

impl From<&NetworkSpec> for v1::NetworkSpec {
    fn from(spec: &NetworkSpec) -> Self {
        Self {
            name: spec.name.clone(),
            labels: spec.labels.clone(),
            driver: spec.driver.name().into(),
            attachable: spec.attachable,
            ingress: spec.ingress,
            internal: spec.internal,
            ipv4: spec.ipv4,
            ipv6: spec.ipv6,
            pools: spec.ipam.iter().map(Into::into).collect(),
            options: spec.options.clone(),
            config_only: spec.config_only,
            config_from: spec.config_from.clone(),
        }
    }
}

impl TryFrom<v1::NetworkSpec> for NetworkSpec {
    type Error = Fault;

    fn try_from(spec: v1::NetworkSpec) -> Result<Self, Fault> {
        let driver = match spec.driver.as_str() {
            "" => NetworkDriver::default(),
            name => NetworkDriver::from_name(name)
                .ok_or_else(|| malformed("--driver", format!("unknown driver `{name}`")))?,
        };
        Ok(Self {
            name: spec.name,
            labels: spec.labels,
            driver,
            attachable: spec.attachable,
            ingress: spec.ingress,
            internal: spec.internal,
            ipv4: spec.ipv4,
            ipv6: spec.ipv6,
            ipam: all(spec.pools)?,
            options: spec.options,
            config_only: spec.config_only,
            config_from: spec.config_from,
        })
    }
}

impl From<&IpamPool> for v1::IpamPool {
    fn from(pool: &IpamPool) -> Self {
        Self {
            subnet: text(pool.subnet.as_ref()),
            range: text(pool.range.as_ref()),
            gateway: text(pool.gateway.as_ref()),
            aux: pool.aux.iter().map(|(name, at)| (name.clone(), at.to_string())).collect(),
        }
    }
}

impl TryFrom<v1::IpamPool> for IpamPool {
    type Error = Fault;

    fn try_from(pool: v1::IpamPool) -> Result<Self, Fault> {
        Ok(Self {
            subnet: parse_some(&pool.subnet, "--subnet", "a subnet such as 10.1.0.0/24")?,
            range: parse_some(&pool.range, "--ip-range", "a range such as 10.1.0.128/25")?,
            gateway: parse_some(&pool.gateway, "--gateway", "an address")?,
            aux: pool
                .aux
                .into_iter()
                .map(|(name, at)| Ok((name, parse(&at, "--aux-address", "an address")?)))
                .collect::<Result<_, Fault>>()?,
        })
    }
}

impl From<&Subnet> for v1::Subnet {
    fn from(subnet: &Subnet) -> Self {
        Self {
            net: subnet.net.to_string(),
            range: text(subnet.range.as_ref()),
            gateway: subnet.gateway.to_string(),
            cursor: subnet.cursor,
        }
    }
}

impl TryFrom<v1::Subnet> for Subnet {
    type Error = Fault;

    fn try_from(subnet: v1::Subnet) -> Result<Self, Fault> {
        Ok(Self {
            net: parse(&subnet.net, "subnet.net", "a subnet")?,
            range: parse_some(&subnet.range, "subnet.range", "a range")?,
            gateway: parse(&subnet.gateway, "subnet.gateway", "an address")?,
            cursor: subnet.cursor,
        })
    }
}

impl From<&Network> for v1::Network {
    fn from(network: &Network) -> Self {
        Self {
            id: crate::bytes_of(network.id.0),
            meta: Some(network.meta.into()),
            spec: Some(network.spec.as_ref().into()),
            vni: network.vni,
            mtu: network.mtu,
            subnets: network.subnets.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::Network> for Network {
    type Error = Fault;

    fn try_from(network: v1::Network) -> Result<Self, Fault> {
        Ok(Self {
            id: id(&network.id, "network.id")?,
            meta: required(network.meta, "network.meta")?.into(),
            spec: Arc::new(required(network.spec, "network.spec")?.try_into()?),
            vni: network.vni,
            mtu: network.mtu,
            subnets: all(network.subnets)?,
        })
    }
}

impl From<&Attachment> for v1::Attachment {
    fn from(one: &Attachment) -> Self {
        Self {
            network: crate::bytes_of(one.network.0),
            v4: one.v4.map(|v4| Bytes::copy_from_slice(&v4.octets())).unwrap_or_default(),
            v6: one.v6.map(|v6| Bytes::copy_from_slice(&v6.octets())).unwrap_or_default(),
        }
    }
}

impl TryFrom<v1::Attachment> for Attachment {
    type Error = Fault;

    fn try_from(one: v1::Attachment) -> Result<Self, Fault> {
        Ok(Self {
            network: id(&one.network, "attachment.network")?,
            v4: octets::<4>(&one.v4, "attachment.v4")?.map(Ipv4Addr::from),
            v6: octets::<16>(&one.v6, "attachment.v6")?.map(Ipv6Addr::from),
        })
    }
}

impl From<&Endpoint> for v1::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        Self {
            vips: endpoint.vips.iter().map(Into::into).collect(),
            ports: endpoint.ports.iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<v1::Endpoint> for Endpoint {
    type Error = Fault;

    fn try_from(endpoint: v1::Endpoint) -> Result<Self, Fault> {
        Ok(Self { vips: all(endpoint.vips)?, ports: all(endpoint.ports)? })
    }
}

impl From<&TaskNetwork> for v1::TaskNetwork {
    fn from(network: &TaskNetwork) -> Self {
        Self {
            attachments: network.attachments.iter().map(Into::into).collect(),
            mesh: network.mesh.as_ref().map(Into::into),
            connected: network.connected.iter().map(Into::into).collect(),
        }
    }
}

impl From<&Connection> for v1::Connection {
    fn from(connection: &Connection) -> Self {
        let attachment = Some((&connection.attachment).into());
        Self { attachment, aliases: connection.aliases.clone() }
    }
}

impl TryFrom<v1::Connection> for Connection {
    type Error = Fault;

    fn try_from(connection: v1::Connection) -> Result<Self, Fault> {
        let attachment = required(connection.attachment, "connection.attachment")?.try_into()?;
        Ok(Self { attachment, aliases: connection.aliases })
    }
}

impl TryFrom<v1::TaskNetwork> for TaskNetwork {
    type Error = Fault;

    fn try_from(network: v1::TaskNetwork) -> Result<Self, Fault> {
        Ok(Self {
            attachments: all(network.attachments)?,
            mesh: network.mesh.map(TryInto::try_into).transpose()?,
            connected: all(network.connected)?,
        })
    }
}

impl From<&DataPath> for v1::DataPath {
    fn from(path: &DataPath) -> Self {
        Self {
            address: text(path.address.as_ref()),
            mtu: path.mtu,
            routes: path.routes.iter().map(ToString::to_string).collect(),
            encryption: path.encryption.as_ref().map(Into::into),
        }
    }
}

impl From<v1::DataPath> for DataPath {
    /// A route that makes no sense is nothing that a subnet could collide with, and who has keys
    /// that are none takes no part in encrypted networks.
    fn from(path: v1::DataPath) -> Self {
        Self {
            address: path.address.parse().ok(),
            mtu: path.mtu,
            routes: path.routes.iter().filter_map(|route| route.parse().ok()).collect(),
            encryption: path.encryption.and_then(|of| of.try_into().ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use types::{Meta, NetworkId};

    use super::*;

    #[test]
    fn a_network_comes_back_as_it_was() {
        let net = "10.1.0.0/24".parse().unwrap();
        let spec = NetworkSpec {
            name: "n".into(),
            driver: NetworkDriver::Macvlan,
            attachable: true,
            ipv6: true,
            ipam: vec![
                IpamPool { subnet: Some(net), ..IpamPool::default() },
                IpamPool { gateway: Some("fd00::1".parse().unwrap()), ..IpamPool::default() },
            ],
            options: BTreeMap::from([("a".into(), "b".into())]),
            ..NetworkSpec::default()
        };
        let network = Network {
            id: NetworkId::MAX,
            meta: Meta { version: 3, ..Meta::default() },
            spec: Arc::new(spec),
            vni: 4096,
            mtu: 1450,
            subnets: vec![
                Subnet {
                    cursor: 7,
                    ..Subnet::new(net, Some("10.1.0.128/25".parse().unwrap()), None)
                },
                Subnet::new("fd00:1::/64".parse().unwrap(), None, None),
            ],
        };
        assert_eq!(Network::try_from(v1::Network::from(&network)), Ok(network));
    }

    #[test]
    fn what_is_given_comes_back_as_it_was() {
        let (v4, v6) = (Ipv4Addr::new(10, 0, 0, 2), "fd00::2".parse().unwrap());
        let both = Attachment { network: NetworkId::MIN, v4: Some(v4), v6: Some(v6) };
        let given = TaskNetwork {
            attachments: vec![both, Attachment::bare(NetworkId::BRIDGE)],
            mesh: Some(Attachment { v4: None, ..both }),
            connected: vec![Connection { attachment: both, aliases: vec!["db".into()] }],
        };
        assert_eq!(TaskNetwork::try_from(v1::TaskNetwork::from(&given)), Ok(given));
        let port =
            PortSpec { target: 80, published: 8080, host: "eth0".into(), ..PortSpec::default() };
        let endpoint = Endpoint { vips: vec![both], ports: vec![port] };
        assert_eq!(Endpoint::try_from(v1::Endpoint::from(&endpoint)), Ok(endpoint));
        let path = DataPath {
            address: Some(v4.into()),
            mtu: 1500,
            routes: vec!["10.0.0.0/16".parse().unwrap()],
            encryption: Some(types::NodeEncryption::default()),
        };
        assert_eq!(DataPath::from(v1::DataPath::from(&path)), path);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_its_field() {
        let port = v1::PortSpec { target: 70_000, ..v1::PortSpec::default() };
        let fault = PortSpec::try_from(port).unwrap_err();
        assert_eq!((fault.field.as_str(), fault.message.contains("70000")), ("--publish", true));
        let mode = v1::EndpointSpec { mode: "x".into(), ..v1::EndpointSpec::default() };
        assert_eq!(EndpointSpec::try_from(mode).unwrap_err().field, "--endpoint-mode");
        let one =
            v1::NetworkAttachment { vips: vec!["x".into()], ..v1::NetworkAttachment::default() };
        assert_eq!(NetworkAttachment::try_from(one).unwrap_err().field, "--network");
        let one =
            v1::Attachment { network: vec![1; 16].into(), v4: vec![1].into(), v6: Bytes::new() };
        assert_eq!(Attachment::try_from(one).unwrap_err().field, "attachment.v4");
    }
}
