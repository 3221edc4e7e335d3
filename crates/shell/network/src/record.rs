//! What a daemon remembers of a container's network, for the one after it.
//!
//! Owns: one small text file a container, below the run directory.
//! Does not know: links in the kernel.
//! Invariant: a file is whole or not there; one that cannot be read counts as not there, and its
//! container is connected anew when somebody asks for it.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use netplan::{AskedBy, HostPortPlan, LocalContainer, LocalLink};
use types::PortProtocol;

/// The directory of all records.
#[derive(Clone, Debug)]
pub(crate) struct Records {
    dir: PathBuf,
}

impl Records {
    pub(crate) fn open(dir: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        Ok(Self { dir })
    }

    pub(crate) fn read_all(&self) -> io::Result<Vec<(String, LocalContainer)>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let text = fs::read_to_string(entry.path()).unwrap_or_default();
            match parse(&text) {
                Some(container) => all.push((name, container)),
                None => {
                    tracing::warn!(container.id = name, "the record of a network is unreadable");
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        Ok(all)
    }

    pub(crate) fn write(&self, id: &str, container: &LocalContainer) -> io::Result<()> {
        // No container's name has a dot.
        let staging = self.dir.join(format!("{id}.new"));
        fs::write(&staging, print(container))?;
        fs::rename(staging, self.dir.join(id))
    }

    pub(crate) fn remove(&self, id: &str) -> io::Result<()> {
        match fs::remove_file(self.dir.join(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(crate) fn remove_all(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn print(container: &LocalContainer) -> String {
    let mut text = format!("{FORMAT}\noutward {}\n", container.outward);
    for link in &container.links {
        let network = link.network.map_or("-".to_owned(), |network| network.to_string());
        let hardware = link.hardware.map(|byte| format!("{byte:02x}")).concat();
        let (by, end) = (asked_by(link.asked_by), text_or_none(&link.link));
        let (v4, v6) = (or_none(link.v4), or_none(link.v6));
        text += &format!("link {network} {by} {} {end} {v4} {v6} {hardware}", link.interface);
        for alias in &link.aliases {
            text += &format!(" {alias}");
        }
        text += "\n";
    }
    for name in &container.names {
        text += &format!("name {name}\n");
    }
    for server in &container.nameservers {
        text += &format!("nameserver {server}\n");
    }
    for port in &container.host_ports {
        let host = text_or_none(&port.host);
        let protocol = port.protocol.name();
        text += &format!("port {protocol} {} {} {host}\n", port.published, port.target);
    }
    text + "end\n"
}

fn text_or_none(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn or_none<T: ToString>(value: Option<T>) -> String {
    value.map_or("-".to_owned(), |value| value.to_string())
}

fn parse(text: &str) -> Option<LocalContainer> {
    let mut container = LocalContainer::default();
    let mut lines = text.lines();
    if lines.next() != Some(FORMAT) {
        return None;
    }
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["outward", word] => container.outward = word.parse().ok()?,
            ["link", network, by, interface, link, v4, v6, hardware, aliases @ ..] => {
                container.links.push(LocalLink {
                    network: optional(network)?,
                    asked_by: parse_asked_by(by)?,
                    interface: (*interface).to_owned(),
                    link: optional(link)?.unwrap_or_default(),
                    v4: optional::<Ipv4Addr>(v4)?,
                    v6: optional::<Ipv6Addr>(v6)?,
                    hardware: parse_hardware(hardware)?,
                    aliases: aliases.iter().map(|alias| (*alias).to_owned()).collect(),
                });
            }
            ["name", name] => container.names.push((*name).to_owned()),
            ["nameserver", server] => container.nameservers.push((*server).to_owned()),
            ["port", protocol, published, target, host] => {
                container.host_ports.push(HostPortPlan {
                    protocol: PortProtocol::from_name(protocol)?,
                    published: published.parse().ok()?,
                    target: target.parse().ok()?,
                    host: if *host == "-" { String::new() } else { (*host).to_owned() },
                });
            }
            ["end"] => return Some(container),
            _ => return None,
        }
    }
    None
}

/// The outer `None` is a word that is neither `-` nor a value.
fn optional<T: std::str::FromStr>(word: &str) -> Option<Option<T>> {
    match word {
        "-" => Some(None),
        word => word.parse().ok().map(Some),
    }
}

fn asked_by(by: AskedBy) -> &'static str {
    match by {
        AskedBy::Service => "service",
        AskedBy::Managers => "managers",
        AskedBy::Node => "node",
    }
}

fn parse_asked_by(word: &str) -> Option<AskedBy> {
    let all = [AskedBy::Service, AskedBy::Managers, AskedBy::Node];
    all.into_iter().find(|by| asked_by(*by) == word)
}

fn parse_hardware(word: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    if word.len() != 12 || !word.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&word[index * 2..index * 2 + 2], 16).ok()?;
    }
    Some(bytes)
}

/// The first line; another one is another build's.
const FORMAT: &str = "shoal container network 2";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let container = LocalContainer {
            links: vec![
                LocalLink {
                    network: Some(types::NetworkId::NONE),
                    interface: "eth0".into(),
                    link: "t1".into(),
                    v4: "10.0.0.2".parse().ok(),
                    hardware: [2, 0x42, 10, 0, 0, 2],
                    ..LocalLink::default()
                },
                LocalLink {
                    interface: "eth1".into(),
                    link: "t2".into(),
                    v6: "fd00::7".parse().ok(),
                    hardware: [0xff; 6],
                    ..LocalLink::default()
                },
                LocalLink {
                    network: Some(types::NetworkId::BRIDGE),
                    asked_by: AskedBy::Node,
                    interface: "eth7".into(),
                    aliases: vec!["db".into(), "store".into()],
                    ..LocalLink::default()
                },
            ],
            outward: true,
            names: vec!["web.1.x".into(), "web.1".into()],
            nameservers: vec!["192.0.2.53".into()],
            host_ports: vec![HostPortPlan {
                protocol: PortProtocol::Udp,
                published: 53,
                target: 5353,
                host: "lo".into(),
            }],
        };
        let text = print(&container);
        assert_eq!(parse(&text), Some(container));
        let half = &text[..text.len() - 5];
        for bad in ["", "shoal", half, &text.replace("true", "maybe"), &text.replace("t1 ", "")] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
