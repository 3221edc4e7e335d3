//! Words for ports and networks.
//!
//! Owns: reading docker's short and long forms of `--publish` and `--network`.
//! Does not know: which networks there are. Invariant: a text that docker refuses is refused here,
//! with the part that is wrong.

use std::net::IpAddr;

use types::{EndpointMode, NetworkAttachment, PortProtocol, PortSpec, PublishMode};

/// What one `--publish` says: a range is several ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Publish(pub(crate) Vec<PortSpec>);

/// `[published:]target[/protocol]`, or `target=…,published=…,protocol=…,mode=…,address=…`.
pub(crate) fn parse_publish(text: &str) -> Result<Publish, String> {
    match text.contains('=') {
        true => parse_long(text),
        false => parse_short(text),
    }
}

fn parse_long(text: &str) -> Result<Publish, String> {
    let mut port = PortSpec { protocol: PortProtocol::Tcp, ..empty() };
    let (mut target, mut published) = (None, None);
    for field in text.split(',') {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("invalid field: {field}: write key=value"))?;
        match key.trim().to_ascii_lowercase().as_str() {
            "target" => target = Some(range(value, "target")?),
            "published" => published = Some(range(value, "published")?),
            "protocol" => port.protocol = protocol(value)?,
            "mode" => {
                port.mode = PublishMode::from_name(value)
                    .ok_or_else(|| format!("invalid publish mode {value}: ingress or host"))?;
            }
            "name" => value.clone_into(&mut port.name),
            "address" | "interface" => value.clone_into(&mut port.host),
            other => return Err(format!("invalid field key {other}")),
        }
    }
    let target = target.ok_or_else(|| format!("missing mandatory field \"target\" in {text}"))?;
    pairs(&port, published, target)
}

fn parse_short(text: &str) -> Result<Publish, String> {
    let (ports, name) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    let port = PortSpec { protocol: protocol(name)?, ..empty() };
    let (published, target) = match ports.rsplit_once(':') {
        None => (None, ports),
        Some((host, _)) if host.contains(':') => {
            return Err("hostip is not supported: write target=…,published=…,address=…".into());
        }
        Some((published, target)) => (Some(range(published, "published")?), target),
    };
    pairs(&port, published, range(target, "target")?)
}

fn empty() -> PortSpec {
    PortSpec {
        name: String::new(),
        protocol: PortProtocol::Tcp,
        target: 0,
        published: 0,
        mode: PublishMode::Ingress,
        host: String::new(),
    }
}

fn protocol(name: &str) -> Result<PortProtocol, String> {
    let lower = name.to_ascii_lowercase();
    let known = PortProtocol::from_name(&lower).filter(|_| !lower.is_empty());
    known.ok_or_else(|| format!("invalid protocol {name}: tcp, udp or sctp"))
}

/// `80` or `8000-8010`.
fn range(text: &str, what: &str) -> Result<(u16, u16), String> {
    let number = |text: &str| {
        let number = text.parse::<u16>();
        number.map_err(|_| format!("invalid {what} port '{text}': from 1 to 65535"))
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (number(first)?, number(last)?) {
        (0, _) if what == "target" => Err("invalid target port '0': from 1 to 65535".into()),
        (first, last) if first > last => Err(format!("invalid range {text}: it goes backwards")),
        pair => Ok(pair),
    }
}

/// One port for each of the range; both ranges have the same length.
fn pairs(
    port: &PortSpec,
    published: Option<(u16, u16)>,
    target: (u16, u16),
) -> Result<Publish, String> {
    let published_of = |nth: u16| published.map_or(0, |(first, _)| first + nth);
    let length = target.1 - target.0;
    if let Some((first, last)) = published
        && last - first != length
    {
        return Err(format!(
            "invalid ranges specified for container and host Ports: {}-{} and {first}-{last}",
            target.0, target.1
        ));
    }
    let one = |nth: u16| PortSpec {
        target: target.0 + nth,
        published: published_of(nth),
        ..port.clone()
    };
    Ok(Publish((0..=length).map(one).collect()))
}

/// `NAME`, or `name=…,alias=…,driver-opt=KEY=VALUE,ip=…,ip6=…,vip=…`; `ip` and `ip6` belong to the
/// slots in order.
pub(crate) fn parse_network(text: &str) -> Result<NetworkAttachment, String> {
    if !text.contains('=') {
        return match text.trim() {
            "" => Err("name a network".into()),
            name => Ok(NetworkAttachment { target: name.into(), ..NetworkAttachment::default() }),
        };
    }
    let mut attached = NetworkAttachment::default();
    for field in text.split(',') {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("invalid field: {field}: write key=value"))?;
        match key.trim().to_ascii_lowercase().as_str() {
            "name" => value.trim().clone_into(&mut attached.target),
            "alias" => attached.aliases.push(value.trim().to_owned()),
            "driver-opt" => {
                let (key, value) = value.split_once('=').ok_or_else(|| {
                    format!("invalid key value pair format in driver options: {value}")
                })?;
                attached.driver_options.insert(key.to_owned(), value.to_owned());
            }
            key @ ("ip" | "ip6" | "vip") => {
                let address: IpAddr =
                    value.parse().map_err(|_| format!("{key}: `{value}` is not an address"))?;
                match key {
                    "vip" => attached.vips.push(address),
                    _ => attached.addresses.push(address),
                }
            }
            other => return Err(format!("invalid field key {other}")),
        }
    }
    match attached.target.is_empty() {
        true => Err(format!("missing mandatory field \"name\" in {text}")),
        false => Ok(attached),
    }
}

/// `vip` or `dnsrr`.
pub(crate) fn parse_endpoint_mode(text: &str) -> Result<EndpointMode, String> {
    let known = EndpointMode::from_name(text).filter(|_| !text.is_empty());
    known.ok_or_else(|| format!("unknown endpoint mode {text}: vip or dnsrr"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(text: &str) -> Result<Vec<String>, String> {
        let print = |port: &PortSpec| {
            let (mode, host) = (port.mode.name(), &port.host);
            format!("{}:{}/{} {mode}{host}", port.published, port.target, port.protocol.name())
        };
        parse_publish(text).map(|publish| publish.0.iter().map(print).collect())
    }

    #[test]
    fn ports_are_read_in_both_forms() {
        for (text, want) in [
            ("80", &["0:80/tcp ingress"][..]),
            ("8080:80", &["8080:80/tcp ingress"]),
            ("8080:80/udp", &["8080:80/udp ingress"]),
            ("8000-8001:80-81", &["8000:80/tcp ingress", "8001:81/tcp ingress"]),
            ("target=80,published=8080,mode=host", &["8080:80/tcp host"]),
            ("published=53,target=53,protocol=udp,address=eth0", &["53:53/udp ingresseth0"]),
        ] {
            assert_eq!(ports(text).unwrap(), want, "{text}");
        }
        for (text, part) in [
            ("", "target"),
            ("80/icmp", "protocol"),
            ("127.0.0.1:80:80", "hostip"),
            ("8000-8002:80-81", "ranges"),
            ("published=80", "target"),
            ("target=80,mode=both", "mode"),
            ("target=80,color=red", "color"),
            ("70000:80", "published"),
            ("90-80", "backwards"),
        ] {
            let error = ports(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn networks_are_read_in_both_forms() {
        assert_eq!(parse_network("Back").unwrap().target, "Back");
        let long = parse_network("name=back,alias=a,alias=b,ip=10.0.0.7,vip=10.0.0.9").unwrap();
        assert_eq!((long.target.as_str(), long.aliases.len()), ("back", 2));
        assert_eq!((long.addresses.len(), long.vips.len()), (1, 1));
        for text in ["", "alias=x", "name=a,ip=x", "name=a,foo=1", "name=a,driver-opt=x"] {
            assert!(parse_network(text).is_err(), "{text}");
        }
    }
}
