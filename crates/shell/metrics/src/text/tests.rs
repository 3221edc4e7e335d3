//! What is written of facts, line by line.

use std::time::Duration;

use base::Id;
use types::{ClusterId, EncryptionBackend, NodeId};

use super::*;

fn id<T: From<Id>>(number: u128) -> T {
    T::from(Id::from_u128(number).unwrap())
}

fn facts() -> Facts {
    let peer = PeerFacts {
        node: id(7),
        hostname: "n\"7\\".into(),
        in_use: true,
        last_handshake: Some(UNIX_EPOCH + Duration::from_millis(1_790_000_000_500)),
        sent_bytes: 1_234,
        received_bytes: 99,
        drops: [("no-session".into(), 3)].into(),
    };
    let never = PeerFacts { last_handshake: None, in_use: false, ..peer.clone() };
    let tunnel = TunnelFacts {
        generation: 1,
        works: true,
        peers: vec![peer],
        drops: [("garbage".into(), 5), ("no-session".into(), 4)].into(),
    };
    let next = TunnelFacts { generation: 2, works: false, peers: vec![never], ..tunnel.clone() };
    Facts {
        build: BuildFacts { version: "1.2.3", commit: "abc" },
        member: Some(MemberFacts { cluster: id(1), node: id(2), manager: true }),
        manager: Some(ManagerFacts {
            leader: true,
            nodes: [(NodeState::Ready, 3)].into(),
            tasks: [(TaskState::Running, 12)].into(),
            services: 4,
            networks: 2,
        }),
        encryption: Some(EncryptionFacts {
            backend: Some(EncryptionBackend::Kernel),
            generation: Some(1),
            tunnels: vec![tunnel, next],
            clear_received: 8,
            clear_sent: 0,
            strange: 1,
        }),
    }
}

/// Lines of the samples of a text.
fn has(text: &str, line: &str) {
    assert!(text.lines().any(|one| one == line), "{line}\n{text}");
}

#[test]
fn everything_is_told_in_the_words_of_open_metrics() {
    let text = text(facts(), Format::OpenMetrics).unwrap();
    let (cluster, node): (ClusterId, NodeId) = (id(1), id(2));
    let (peer, host): (NodeId, &str) = (id(7), r#"n\"7\\"#);
    let of =
        |generation: u32| format!(r#"peer_id="{peer}",peer="{host}",generation="{generation}""#);
    for line in [
        "# TYPE shoal_build info".to_owned(),
        r#"shoal_build_info{version="1.2.3",commit="abc"} 1"#.into(),
        format!(r#"swarm_node_info{{swarm_id="{cluster}",node_id="{node}"}} 1"#),
        "swarm_node_manager 1".into(),
        "swarm_manager_leader 1".into(),
        r#"swarm_manager_nodes{state="ready"} 3"#.into(),
        r#"swarm_manager_nodes{state="disconnected"} 0"#.into(),
        "# TYPE swarm_manager_tasks_total gauge".into(),
        r#"swarm_manager_tasks_total{state="running"} 12"#.into(),
        r#"swarm_manager_tasks_total{state="orphaned"} 0"#.into(),
        "swarm_manager_services_total 4".into(),
        "swarm_manager_networks_total 2".into(),
        r#"shoal_encryption_info{backend="kernel"} 1"#.into(),
        "shoal_encryption_key_generation 1".into(),
        "# TYPE shoal_encryption_clear_text_packets counter".into(),
        r#"shoal_encryption_clear_text_packets_total{direction="in"} 8"#.into(),
        r#"shoal_encryption_clear_text_packets_total{direction="out"} 0"#.into(),
        "shoal_encryption_foreign_packets_total 1".into(),
        r#"shoal_tunnel_up{generation="2"} 0"#.into(),
        r#"shoal_tunnel_dropped_packets_total{generation="1",cause="garbage"} 5"#.into(),
        "# UNIT shoal_tunnel_peer_last_handshake_timestamp_seconds seconds".into(),
        format!("shoal_tunnel_peer_last_handshake_timestamp_seconds{{{}}} 1790000000.5", of(1)),
        format!("shoal_tunnel_peer_last_handshake_timestamp_seconds{{{}}} 0.0", of(2)),
        format!("shoal_tunnel_peer_in_use{{{}}} 1", of(1)),
        format!("shoal_tunnel_peer_in_use{{{}}} 0", of(2)),
        "# UNIT shoal_tunnel_peer_sent_bytes bytes".into(),
        format!("shoal_tunnel_peer_sent_bytes_total{{{}}} 1234", of(1)),
        format!("shoal_tunnel_peer_received_bytes_total{{{}}} 99", of(1)),
        format!(r#"shoal_tunnel_peer_dropped_packets_total{{{},cause="no-session"}} 3"#, of(1)),
    ] {
        has(&text, &line);
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn the_older_format_has_the_same_samples() {
    let text = text(facts(), Format::Prometheus).unwrap();
    for line in [
        "# TYPE shoal_build_info gauge",
        "# TYPE shoal_encryption_clear_text_packets_total counter",
        r#"shoal_encryption_clear_text_packets_total{direction="in"} 8"#,
        "swarm_manager_services_total 4",
    ] {
        has(&text, line);
    }
    assert!(!text.contains("# EOF") && !text.contains("# UNIT"));
}

#[test]
fn nothing_is_said_of_what_is_not_known() {
    let nothing = text(Facts::default(), Format::OpenMetrics).unwrap();
    let names: Vec<&str> =
        nothing.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert_eq!(names, ["shoal_build info"]);
    let mut without_networks = facts();
    without_networks.encryption = Some(EncryptionFacts::default());
    let text = text(without_networks, Format::OpenMetrics).unwrap();
    assert!(!text.contains("shoal_tunnel") && !text.contains("backend"), "{text}");
    has(&text, r#"shoal_encryption_clear_text_packets_total{direction="in"} 0"#);
}

#[test]
fn open_metrics_is_written_for_those_who_ask_for_it() {
    let prometheus = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;\
                      version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
    assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
    for other in ["", "*/*", "text/plain"] {
        assert_eq!(Format::accepted(other), Format::Prometheus, "{other}");
    }
}
