//! The facts as text.
//!
//! Owns: the name, type, unit and help of every metric.
//! Does not know: who reads it. Invariant: a name that Docker has means what it means there.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::encoding::{prometheus_text, text as openmetrics_text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use types::{NodeState, TaskState};

use crate::facts::{
    BuildFacts, EncryptionFacts, Facts, ManagerFacts, MemberFacts, PeerFacts, TunnelFacts,
};

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' own, 0.0.4.
    Prometheus,
}

impl Format {
    /// What a reader that accepts this gets.
    #[must_use]
    pub fn accepted(accept: &str) -> Self {
        match accept.to_ascii_lowercase().contains("application/openmetrics-text") {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The facts in a format.
///
/// # Errors
/// None that memory does not make: the writer takes everything.
pub fn text(facts: Facts, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Collected(facts)));
    let mut out = String::new();
    match format {
        Format::OpenMetrics => openmetrics_text::encode(&mut out, &registry)?,
        Format::Prometheus => prometheus_text::encode(&mut out, &registry)?,
    }
    Ok(out)
}

#[derive(Debug)]
struct Collected(Facts);

impl Collector for Collected {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let (mut out, facts) = (Writer(encoder), &self.0);
        out.build(&facts.build)?;
        if let Some(member) = &facts.member {
            out.member(member)?;
        }
        if let Some(manager) = &facts.manager {
            out.manager(manager)?;
        }
        if let Some(encryption) = &facts.encryption {
            out.encryption(encryption)?;
            out.tunnels(&encryption.tunnels)?;
            out.peers(&encryption.tunnels)?;
        }
        Ok(())
    }
}

type Labels = Vec<(&'static str, String)>;

struct Writer<'a>(DescriptorEncoder<'a>);

/// The swarm's own, named as Docker's.
impl Writer<'_> {
    fn member(&mut self, member: &MemberFacts) -> fmt::Result {
        let labels =
            vec![("swarm_id", member.cluster.to_string()), ("node_id", member.node.to_string())];
        self.gauges("swarm_node_info", "Information related to the swarm", [(labels, 1)])?;
        let help = "Whether this node is a manager or not";
        self.gauge("swarm_node_manager", help, u64::from(member.manager))
    }

    fn manager(&mut self, facts: &ManagerFacts) -> fmt::Result {
        let help = "Indicates if this manager node is a leader";
        self.gauge("swarm_manager_leader", help, u64::from(facts.leader))?;
        let state = |name: &str| vec![("state", name.to_owned())];
        let nodes = NodeState::ALL.into_iter().map(|one| {
            let count = facts.nodes.get(&one).copied().unwrap_or_default();
            (state(one.name()), count)
        });
        self.gauges("swarm_manager_nodes", "The number of nodes", nodes)?;
        let tasks = TaskState::ALL.into_iter().map(|one| {
            let count = facts.tasks.get(&one).copied().unwrap_or_default();
            (state(one.name()), count)
        });
        let help = "The number of tasks in the cluster object store";
        self.gauges("swarm_manager_tasks_total", help, tasks)?;
        let help = "The number of services in the cluster object store";
        self.gauge("swarm_manager_services_total", help, facts.services)?;
        let help = "The number of networks in the cluster object store";
        self.gauge("swarm_manager_networks_total", help, facts.networks)
    }
}

impl Writer<'_> {
    fn build(&mut self, build: &BuildFacts) -> fmt::Result {
        let help = "Which Shoal this is";
        let labels: Labels =
            vec![("version", build.version.to_owned()), ("commit", build.commit.to_owned())];
        self.0.encode_descriptor("shoal_build", help, None, MetricType::Info)?.encode_info(&labels)
    }

    fn encryption(&mut self, facts: &EncryptionFacts) -> fmt::Result {
        if let Some(backend) = facts.backend {
            let help = "Who encrypts on this node: the kernel, or a process of Shoal's";
            let labels: Labels = vec![("backend", backend.name().to_owned())];
            let name = "shoal_encryption";
            self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)?;
        }
        if let Some(generation) = facts.generation {
            let help = "The newest generation of keys that is used towards every peer";
            self.gauge("shoal_encryption_key_generation", help, generation.into())?;
        }
        let clear = [("in", facts.clear_received), ("out", facts.clear_sent)]
            .map(|(direction, count)| (vec![("direction", direction.to_owned())], count));
        self.counters(
            "shoal_encryption_clear_text",
            "Packets of encrypted networks that were not encrypted, and were dropped by the host",
            &packets(),
            clear,
        )?;
        self.counters(
            "shoal_encryption_foreign",
            "Packets through the tunnel for a network that their sender is not on, dropped",
            &packets(),
            [(Labels::new(), facts.strange)],
        )
    }

    fn tunnels(&mut self, tunnels: &[TunnelFacts]) -> fmt::Result {
        let works = tunnels.iter().map(|one| (generation(one), u64::from(one.works)));
        self.gauges("shoal_tunnel_up", "Whether the device of a generation works", works)?;
        let drops = tunnels.iter().flat_map(|one| {
            one.drops.iter().map(|(cause, count)| (with_cause(generation(one), cause), *count))
        });
        let help = "All packets that were dropped, of any peer or none, by cause";
        self.counters("shoal_tunnel_dropped", help, &packets(), drops)
    }

    fn peers(&mut self, tunnels: &[TunnelFacts]) -> fmt::Result {
        let all = || {
            let peers = tunnels.iter().flat_map(|of| of.peers.iter().map(move |one| (of, one)));
            peers.map(|(of, one)| (peer(of, one), one))
        };
        self.gauges(
            "shoal_tunnel_peer_in_use",
            "Whether packets to the peer go through the device of this generation",
            all().map(|(labels, peer)| (labels, u64::from(peer.in_use))),
        )?;
        let shaken = all().map(|(labels, peer)| (labels, unix_seconds(peer.last_handshake)));
        let name = "shoal_tunnel_peer_last_handshake_timestamp";
        let help = "When the last handshake with the peer was, in Unix time; 0: never";
        self.family(name, help, Some(&Unit::Seconds), MetricType::Gauge, shaken, ConstGauge::new)?;
        self.counters(
            "shoal_tunnel_peer_sent",
            "Bytes that were sent to the peer through the tunnel",
            &Unit::Bytes,
            all().map(|(labels, peer)| (labels, peer.sent_bytes)),
        )?;
        self.counters(
            "shoal_tunnel_peer_received",
            "Bytes that came from the peer through the tunnel",
            &Unit::Bytes,
            all().map(|(labels, peer)| (labels, peer.received_bytes)),
        )?;
        let drops = all().flat_map(|(labels, peer)| {
            let drop =
                move |(cause, count): (&String, &u64)| (with_cause(labels.clone(), cause), *count);
            peer.drops.iter().map(drop).collect::<Vec<_>>()
        });
        let help = "Packets of and to the peer that were dropped, by cause";
        self.counters("shoal_tunnel_peer_dropped", help, &packets(), drops)
    }
}

impl Writer<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        self.gauges(name, help, [(Labels::new(), value)])
    }

    fn gauges(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        self.family(name, help, None, MetricType::Gauge, samples, ConstGauge::new)
    }

    fn counters(
        &mut self,
        name: &str,
        help: &str,
        unit: &Unit,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) -> fmt::Result {
        self.family(name, help, Some(unit), MetricType::Counter, samples, ConstCounter::new)
    }

    /// Without samples there is no family.
    fn family<V, M: EncodeMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<&Unit>,
        kind: MetricType,
        samples: impl IntoIterator<Item = (Labels, V)>,
        metric: impl Fn(V) -> M,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, unit, kind)?;
        for (labels, value) in samples {
            let metric = metric(value);
            match labels.is_empty() {
                true => metric.encode(family.encode_family(&NO_LABELS)?)?,
                false => metric.encode(family.encode_family(&labels)?)?,
            }
        }
        Ok(())
    }
}

const NO_LABELS: [(&str, &str); 0] = [];

fn packets() -> Unit {
    Unit::Other("packets".to_owned())
}

fn generation(tunnel: &TunnelFacts) -> Labels {
    vec![("generation", tunnel.generation.to_string())]
}

fn peer(tunnel: &TunnelFacts, peer: &PeerFacts) -> Labels {
    vec![
        ("peer_id", peer.node.to_string()),
        ("peer", peer.hostname.clone()),
        ("generation", tunnel.generation.to_string()),
    ]
}

fn with_cause(mut labels: Labels, cause: &str) -> Labels {
    labels.push(("cause", cause.to_owned()));
    labels
}

/// To the millisecond, which is more than is known.
fn unix_seconds(at: Option<SystemTime>) -> f64 {
    let since = at.and_then(|at| at.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    since.as_millis() as f64 / 1_000.0
}

#[cfg(test)]
mod tests;
