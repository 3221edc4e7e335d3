//! What a container is told, beside a model that is too simple to be wrong, read by hickory-proto.

#![allow(clippy::unwrap_used)] // A test: see the lints of the workspace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use base::Id;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use netd::fuzzing::{Resolver, Said};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use types::{
    DirectoryUpdate, EndpointMode, EndpointPart, NetworkDriver, NetworkId, NetworkPart, NodeId,
    PortPart, PortProtocol, PublishMode, ServiceId, ServicePart, TaskId,
};

const NETWORKS: [&str; 2] = ["front", "Back.net"];
const NAMES: [&str; 5] = ["web", "DB", "tasks", "web.1", "a-name-that-is-long-enough-to-fill-it"];
const PORTS: [&str; 2] = ["http", "Metrics"];

fn network_id(number: usize) -> NetworkId {
    NetworkId(Id::from_u128(100 + number as u128).unwrap())
}

fn network(number: usize) -> NetworkPart {
    let v4: ipnet::IpNet = format!("10.{number}.0.0/16").parse().unwrap();
    let v6: ipnet::IpNet = format!("fd00:{number}::/64").parse().unwrap();
    NetworkPart {
        id: network_id(number),
        name: NETWORKS[number].into(),
        driver: NetworkDriver::Overlay,
        vni: 0,
        mtu: 0,
        ingress: false,
        internal: false,
        encrypted: false,
        subnets: vec![(v4, v4.hosts().next().unwrap()), (v6, v6.hosts().next().unwrap())],
        options: [].into(),
        config_from: String::new(),
    }
}

fn v4(network: usize, host: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, network as u8, (host >> 8) as u8, host as u8)
}

fn v6(network: usize, host: usize) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, network as u16, 0, 0, 0, 0, 0, host as u16)
}

fn ports() -> impl Strategy<Value = Vec<(&'static str, bool)>> {
    prop::collection::vec((select(&PORTS[..]), any::<bool>()), 0..3)
}

prop_compose! {
    fn services()(list in prop::collection::vec(
        (0..2_usize, select(&NAMES[..]), prop::option::of(select(&NAMES[..])), any::<bool>(),
         any::<bool>(), any::<bool>(), ports()),
        0..6,
    )) -> Vec<ServicePart> {
        let make = |(at, (on, name, alias, is_dnsrr, has_v4, has_v6, ports))| {
            let (on, name): (usize, &str) = (on, name);
            let alias: Option<&str> = alias;
            let ports: Vec<(&str, bool)> = ports;
            ServicePart {
                network: network_id(on),
                service: ServiceId(Id::from_u128(1_000 + at as u128).unwrap()),
                name: name.into(),
                aliases: alias.into_iter().map(str::to_owned).collect(),
                mode: if is_dnsrr { EndpointMode::Dnsrr } else { EndpointMode::Vip },
                v4: (has_v4 && !is_dnsrr).then(|| v4(on, 1_000 + at)),
                v6: (has_v6 && !is_dnsrr).then(|| v6(on, 1_000 + at)),
                ports: ports.into_iter().zip(80..).map(|((name, is_tcp), target)| PortPart {
                    name: name.into(),
                    protocol: if is_tcp { PortProtocol::Tcp } else { PortProtocol::Udp },
                    target,
                    published: 0,
                    mode: PublishMode::Ingress,
                    host: String::new(),
                }).collect(),
            }
        };
        list.into_iter().enumerate().map(make).collect()
    }
}

prop_compose! {
    fn endpoints()(
        // Few, or more than a datagram takes.
        count in prop_oneof![0..8_usize, 60..130_usize],
    )(list in prop::collection::vec(
        (0..2_usize, prop::option::weighted(0.8, 0..6_u128), prop::bool::weighted(0.7),
         any::<bool>(), any::<bool>(), prop::collection::vec(select(&NAMES[..]), 0..3)),
        count,
    )) -> Vec<EndpointPart> {
        let make = |(at, (on, service, serving, has_v4, has_v6, names))| {
            let (on, service, names): (usize, Option<u128>, Vec<&str>) = (on, service, names);
            let (has_v4, has_v6): (bool, bool) = (has_v4, has_v6);
            EndpointPart {
                network: network_id(on),
                task: TaskId(Id::from_u128(1_000_000 + at as u128).unwrap()),
                service: service.map(|number| ServiceId(Id::from_u128(1_000 + number).unwrap())),
                node: NodeId::MIN,
                number: 1,
                v4: has_v4.then(|| v4(on, 10 + at)),
                v6: has_v6.then(|| v6(on, 10 + at)),
                names: names.into_iter().map(|name| format!("{name}.t{at}")).collect(),
                serving,
            }
        };
        list.into_iter().enumerate().map(make).collect()
    }
}

/// What is asked for, as text: names of ours in all their forms, addresses, and others.
fn asked() -> impl Strategy<Value = String> {
    let plain = || {
        prop_oneof![
            select(&NAMES[..]).prop_map(str::to_owned),
            (select(&NAMES[..]), 0..12_u8).prop_map(|(name, at)| format!("{name}.t{at}")),
            "[a-z]{1,5}",
        ]
    };
    let name = || {
        prop_oneof![
            plain(),
            plain().prop_map(|name| format!("tasks.{name}")),
            (plain(), select(&NETWORKS[..])).prop_map(|(name, on)| format!("{name}.{on}")),
            (plain(), select(&NETWORKS[..])).prop_map(|(name, on)| format!("tasks.{name}.{on}")),
        ]
    };
    prop_oneof![
        4 => name(),
        2 => (select(&PORTS[..]), select(&["tcp", "udp"][..]), any::<bool>(), name()).prop_map(
            |(port, protocol, is_plain, name)| if is_plain {
                format!("{port}.{protocol}.{name}")
            } else {
                format!("_{port}._{protocol}.{name}")
            }
        ),
        1 => (0..3_usize, 0..24_usize, any::<bool>()).prop_map(|(on, host, is_v4)| {
            let host = if host < 18 { host } else { 982 + host };
            let address: IpAddr = if is_v4 { v4(on, host).into() } else { v6(on, host).into() };
            Name::from(address).to_ascii()
        }),
        1 => Just(String::new()),
    ]
}

/// Records as they are compared: owner, type, data, and seconds.
type Line = (String, String, u32);

#[derive(Debug, PartialEq)]
enum Told {
    Records { answers: Vec<Line>, additional: Vec<Line> },
    NoName,
    Foreign,
}

/// The directory as lists that are walked from the beginning to the end.
struct Model<'a> {
    services: &'a [ServicePart],
    endpoints: &'a [EndpointPart],
}

enum Target<'a> {
    Service(&'a ServicePart),
    Tasks(&'a ServicePart),
    Endpoint(&'a EndpointPart),
}

impl<'a> Model<'a> {
    fn targets(&self, on: NetworkId, name: &str) -> Vec<Target<'a>> {
        let same = |own: &str| own.eq_ignore_ascii_case(name);
        let tasks =
            name.split_at_checked(6).filter(|(word, _)| word.eq_ignore_ascii_case("tasks."));
        let mut all = Vec::new();
        for service in self.services.iter().filter(|part| part.network == on) {
            let names = || std::iter::once(&service.name).chain(&service.aliases);
            if names().any(|own| same(own)) {
                all.push(Target::Service(service));
            }
            if tasks.is_some_and(|(_, rest)| names().any(|own| own.eq_ignore_ascii_case(rest))) {
                all.push(Target::Tasks(service));
            }
        }
        let endpoints = self.endpoints.iter().filter(|part| part.network == on);
        let named = endpoints.filter(|part| part.names.iter().any(|own| same(own)));
        all.extend(named.map(Target::Endpoint));
        all
    }

    fn find(&self, networks: &[NetworkId], name: &str) -> Option<Vec<Target<'a>>> {
        let plain = networks.iter().map(|on| self.targets(*on, name)).find(|all| !all.is_empty());
        plain.or_else(|| {
            networks.iter().find_map(|on| {
                let own = (0..2).find(|number| network_id(*number) == *on).unwrap();
                let suffix = format!(".{}", NETWORKS[own]);
                let at = name.len().checked_sub(suffix.len())?;
                let (prefix, end) = name.split_at_checked(at)?;
                let is_on = end.eq_ignore_ascii_case(&suffix) && !prefix.is_empty();
                is_on.then(|| self.targets(*on, prefix)).filter(|all| !all.is_empty())
            })
        })
    }

    fn serving(&self, of: &ServicePart) -> impl Iterator<Item = &'a EndpointPart> {
        let (service, network) = (of.service, of.network);
        self.endpoints
            .iter()
            .filter(move |part| part.service == Some(service) && part.network == network)
            .filter(|part| part.serving)
    }

    fn addresses(&self, targets: &[Target<'a>]) -> (Vec<IpAddr>, u32) {
        let (mut all, mut ttl, mut is_service) = (Vec::new(), 30, false);
        for target in targets {
            match target {
                Target::Service(part) if part.mode == EndpointMode::Vip => {
                    is_service = true;
                    all.extend(both(part.v4, part.v6));
                }
                Target::Service(part) | Target::Tasks(part) => {
                    (is_service, ttl) = (true, 1);
                    all.extend(self.serving(part).flat_map(|part| both(part.v4, part.v6)));
                }
                Target::Endpoint(_) => {}
            }
        }
        if is_service {
            return (all, ttl);
        }
        for only_serving in [true, false] {
            for target in targets {
                if let Target::Endpoint(part) = target
                    && (part.serving || !only_serving)
                {
                    all.extend(both(part.v4, part.v6));
                }
            }
            if !all.is_empty() {
                break;
            }
        }
        (all, 1)
    }

    fn tell(&self, networks: &[NetworkId], name: &str, kind: RecordType) -> Told {
        let owner = name.to_ascii_lowercase();
        if let Some(targets) = self.find(networks, name) {
            let (all, ttl) = self.addresses(&targets);
            let answers = all.into_iter().filter_map(|address| {
                let is_meant = match address {
                    IpAddr::V4(_) => [RecordType::A, RecordType::ANY].contains(&kind),
                    IpAddr::V6(_) => [RecordType::AAAA, RecordType::ANY].contains(&kind),
                };
                is_meant.then(|| (owner.clone(), address.to_string(), ttl))
            });
            return Told::Records { answers: sorted(answers.collect()), additional: Vec::new() };
        }
        match kind {
            RecordType::PTR => self.reverse(networks, &owner),
            RecordType::SRV => self.locate(networks, &owner),
            _ => Told::Foreign,
        }
    }

    fn reverse(&self, networks: &[NetworkId], owner: &str) -> Told {
        let parsed = Name::from_ascii(format!("{owner}.")).unwrap().parse_arpa_name();
        let Ok(net) = parsed else { return Told::Foreign };
        if net.prefix_len() != net.max_prefix_len() {
            return Told::Foreign;
        }
        let mut is_ours = false;
        for on in networks {
            let number = (0..2).find(|number| network_id(*number) == *on).unwrap();
            let services = self.services.iter().filter(|part| part.network == *on);
            let services = services.map(|part| (part.v4, part.v6, Some(&part.name), 30));
            let endpoints = self.endpoints.iter().filter(|part| part.network == *on);
            let endpoints = endpoints.map(|part| (part.v4, part.v6, part.names.first(), 1));
            let mut named = services.chain(endpoints).filter(|(a, b, name, _)| {
                name.is_some() && both(*a, *b).any(|own| own == net.addr())
            });
            if let Some((_, _, Some(name), ttl)) = named.next() {
                let name = format!("{name}.{}", NETWORKS[number]).to_ascii_lowercase();
                let answers = vec![(owner.to_owned(), name, ttl)];
                return Told::Records { answers, additional: Vec::new() };
            }
            is_ours |= network(number).subnets.iter().any(|(own, _)| own.contains(&net.addr()));
        }
        if is_ours { Told::NoName } else { Told::Foreign }
    }

    fn locate(&self, networks: &[NetworkId], owner: &str) -> Told {
        let parts: Vec<&str> = owner.splitn(3, '.').collect();
        let [port, protocol, name] = parts[..] else { return Told::Foreign };
        let plain = |label: &str| label.strip_prefix('_').unwrap_or(label).to_owned();
        let (port, protocol) = (plain(port), plain(protocol));
        let Some(targets) = self.find(networks, name) else { return Told::Foreign };
        let (mut answers, mut additional) = (Vec::new(), Vec::new());
        for target in &targets {
            let (part, of_tasks) = match target {
                Target::Service(part) => (part, part.mode == EndpointMode::Dnsrr),
                Target::Tasks(part) => (part, true),
                Target::Endpoint(_) => continue,
            };
            let mut ports = part.ports.iter();
            let Some(found) = ports.find(|own| {
                own.name.eq_ignore_ascii_case(&port) && own.protocol.name() == protocol
            }) else {
                continue;
            };
            let mut say = |host: &str, addresses: Vec<IpAddr>, ttl| {
                let host = host.to_ascii_lowercase();
                answers.push((owner.to_owned(), format!("0 0 {} {host}", found.target), ttl));
                let lines =
                    addresses.iter().map(|address| (host.clone(), address.to_string(), ttl));
                additional.extend(lines);
            };
            if !of_tasks {
                say(name, both(part.v4, part.v6).collect(), 30);
                continue;
            }
            for endpoint in self.serving(part) {
                let host = endpoint.names.first().map_or(name, String::as_str);
                say(host, both(endpoint.v4, endpoint.v6).collect(), 1);
            }
        }
        if answers.is_empty() {
            return Told::NoName;
        }
        Told::Records { answers: sorted(answers), additional: sorted(additional) }
    }
}

fn both(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) -> impl Iterator<Item = IpAddr> {
    v4.map(IpAddr::V4).into_iter().chain(v6.map(IpAddr::V6))
}

fn sorted(mut lines: Vec<Line>) -> Vec<Line> {
    lines.sort();
    lines
}

fn lines(records: &[Record]) -> Vec<Line> {
    let text = |name: &Name| name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let line = |record: &Record| {
        assert_eq!(record.dns_class, DNSClass::IN);
        let data = match &record.data {
            RData::A(a) => a.0.to_string(),
            RData::AAAA(a) => a.0.to_string(),
            RData::PTR(name) => text(&name.0),
            RData::SRV(srv) => {
                format!("{} {} {} {}", srv.priority, srv.weight, srv.port, text(&srv.target))
            }
            other => panic!("{other:?}"),
        };
        (text(&record.name), data, record.ttl)
    };
    sorted(records.iter().map(line).collect())
}

fn told(said: &Said) -> (Told, Option<Message>) {
    let answer = match said {
        Said::Foreign => return (Told::Foreign, None),
        Said::Nothing => panic!("a question was not answered"),
        Said::Answer(bytes) => Message::from_vec(bytes).unwrap(),
    };
    let told = match answer.metadata.response_code {
        ResponseCode::NXDomain => Told::NoName,
        ResponseCode::NoError => {
            let (answers, additional) = (lines(&answer.answers), lines(&answer.additionals));
            Told::Records { answers, additional }
        }
        other => panic!("{other:?}"),
    };
    (told, Some(answer))
}

/// Some of its letters in the other case.
fn mixed(name: &str, seed: u64) -> String {
    let mix = |(at, letter): (usize, char)| {
        let is_upper = seed >> (at % 64) & 1 != 0;
        if is_upper { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() }
    };
    name.chars().enumerate().map(mix).collect()
}

fn question(name: &str, kind: RecordType, size: Option<u16>, id: u16) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = id.is_multiple_of(2);
    let labels: Vec<&[u8]> = name.split('.').filter(|l| !l.is_empty()).map(str::as_bytes).collect();
    let mut name = Name::from_labels(labels).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    if let Some(size) = size {
        let mut edns = Edns::new();
        edns.set_max_payload(size);
        message.set_edns(edns);
    }
    message
}

const KINDS: [RecordType; 9] = [
    RecordType::A,
    RecordType::AAAA,
    RecordType::PTR,
    RecordType::SRV,
    RecordType::ANY,
    RecordType::TXT,
    RecordType::MX,
    RecordType::HTTPS,
    RecordType::Unknown(4_711),
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn answers_hold_what_the_directory_says(
        services in services(),
        endpoints in endpoints(),
        networks in select(vec![vec![0], vec![1], vec![0, 1], vec![1, 0], vec![]]),
        questions in prop::collection::vec(
            (asked(), select(&KINDS[..]), any::<u64>(), any::<u16>(),
             select(&[None, Some(0), Some(512), Some(600), Some(1_232), Some(4_096)][..])),
            20..60,
        ),
        removed in prop::collection::vec(any::<Index>(), 0..4),
    ) {
        let mut resolver = Resolver::default();
        resolver.apply(&DirectoryUpdate {
            full: true,
            networks: vec![network(0), network(1)],
            services: services.clone(),
            endpoints: endpoints.clone(),
            ..DirectoryUpdate::default()
        });
        // Some leave, and one of them comes back.
        let mut left = endpoints;
        for at in removed.iter().filter(|_| !left.is_empty()).collect::<Vec<_>>() {
            if left.is_empty() {
                break;
            }
            let gone = left.remove(at.index(left.len()));
            resolver.apply(&DirectoryUpdate {
                removed_endpoints: vec![(gone.network, gone.task)],
                ..DirectoryUpdate::default()
            });
            if at.index(3) == 0 {
                resolver.apply(&DirectoryUpdate {
                    endpoints: vec![gone.clone()],
                    ..DirectoryUpdate::default()
                });
                left.push(gone);
            }
        }
        let model = Model { services: &services, endpoints: &left };
        let networks: Vec<NetworkId> = networks.into_iter().map(network_id).collect();
        for (name, kind, seed, id, size) in questions {
            let name = mixed(name.trim_end_matches('.'), seed);
            let question = question(&name, kind, size, id);
            let bytes = question.to_vec().unwrap();
            let whole = resolver.ask(&networks, &bytes, true);
            let (said, answer) = told(&whole);
            prop_assert_eq!(&said, &model.tell(&networks, &name, kind), "{} {}", name, kind);
            let Some(answer) = answer else { continue };
            check_form(&question, &answer);
            let Said::Answer(cut) = resolver.ask(&networks, &bytes, false) else {
                panic!("by datagram it is another's matter");
            };
            let Said::Answer(whole) = whole else { unreachable!() };
            check_cut(&question, usize::from(size.unwrap_or(0).max(512)), &whole, &cut);
        }
    }
}

/// The head of an answer repeats the question as it came.
fn check_form(question: &Message, answer: &Message) {
    assert_eq!(answer.metadata.id, question.metadata.id);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert!(answer.metadata.recursion_available && answer.metadata.authoritative);
    assert_eq!(answer.metadata.recursion_desired, question.metadata.recursion_desired);
    assert!(!answer.metadata.truncation);
    let text = |message: &Message| message.queries[0].to_string();
    assert_eq!((answer.queries.len(), text(answer)), (1, text(question)));
    assert_eq!(answer.edns.is_some(), question.edns.is_some());
}

/// By datagram it is the same, or it says that it was cut and holds only what is true.
fn check_cut(question: &Message, bytes_max: usize, whole: &[u8], cut: &[u8]) {
    assert!(cut.len() <= bytes_max);
    let (of_whole, of_cut) = (Message::from_vec(whole).unwrap(), Message::from_vec(cut).unwrap());
    let fits = whole.len() <= bytes_max;
    // Addresses of tasks beside a location are left out first, and that is not a cut.
    if !fits && !of_whole.additionals.is_empty() && !of_cut.metadata.truncation {
        assert_eq!(lines(&of_cut.answers), lines(&of_whole.answers));
        return;
    }
    assert_eq!(of_cut.metadata.truncation, !fits, "{question:?}");
    let (all, some) = (lines(&of_whole.answers), lines(&of_cut.answers));
    assert!(some.iter().all(|line| all.contains(line)));
    if fits {
        assert_eq!((some, cut.len()), (all, whole.len()));
    }
}
