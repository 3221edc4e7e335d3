//! What nodes say of the paths between them.
//!
//! Owns: the conversions of a check and of bad paths. Does not know: what is made of them.
//! Invariant: what goes out and comes back is the same; lists that a node sends are bounded here,
//! and its texts hold nothing that a terminal acts on.

use base::Millis;
use types::limits::{
    BAD_PATHS_MAX, CHECK_PATHS_MAX, CHECK_TEXTS_MAX, STATUS_TEXT_BYTES_MAX, TUNNEL_DROP_BYTES_MAX,
    TUNNEL_DROPS_MAX,
};
use types::{BadPath, Fault, NetworkCheck, PathCheck, PathTrouble, TunnelCheck};

use super::encryption::backend;
use super::{all, id};
use crate::{bytes_of, v1};

impl From<&BadPath> for v1::BadPath {
    fn from(bad: &BadPath) -> Self {
        let too_large = match bad.trouble {
            PathTrouble::Silent => 0,
            PathTrouble::TooLarge(bytes) => bytes,
        };
        Self { network: bytes_of(bad.network.0), node: bytes_of(bad.node.0), too_large }
    }
}

impl TryFrom<v1::BadPath> for BadPath {
    type Error = Fault;

    fn try_from(bad: v1::BadPath) -> Result<Self, Fault> {
        let trouble = match bad.too_large {
            0 => PathTrouble::Silent,
            bytes => PathTrouble::TooLarge(bytes),
        };
        let (network, node) = (id(&bad.network, "paths.network")?, id(&bad.node, "paths.node")?);
        Ok(Self { network, node, trouble })
    }
}

/// The bad paths of a heartbeat, without those that make no sense.
#[must_use]
pub fn bad_paths(told: Vec<v1::BadPath>) -> Vec<BadPath> {
    let told = told.into_iter().take(BAD_PATHS_MAX);
    told.filter_map(|bad| BadPath::try_from(bad).ok()).collect()
}

impl From<&PathCheck> for v1::PathCheck {
    fn from(path: &PathCheck) -> Self {
        Self {
            node: bytes_of(path.node.0),
            sent: path.sent,
            answered: path.answered,
            round_trip_us: path.round_trip_us,
            wanted: path.wanted,
            passes: path.passes,
            tunnel: path.tunnel.as_ref().map(Into::into),
        }
    }
}

impl TryFrom<v1::PathCheck> for PathCheck {
    type Error = Fault;

    fn try_from(path: v1::PathCheck) -> Result<Self, Fault> {
        Ok(Self {
            node: id(&path.node, "check.paths.node")?,
            sent: path.sent,
            answered: path.answered,
            round_trip_us: path.round_trip_us,
            wanted: path.wanted,
            passes: path.passes,
            tunnel: path.tunnel.map(TryInto::try_into).transpose()?,
        })
    }
}

impl From<&TunnelCheck> for v1::TunnelCheck {
    fn from(tunnel: &TunnelCheck) -> Self {
        Self {
            backend: tunnel.backend as u32,
            generation: tunnel.generation,
            handshake_age_ms: tunnel.handshake_age.map(|age| age.0),
            sent_bytes: tunnel.sent_bytes,
            received_bytes: tunnel.received_bytes,
            drops: tunnel.drops.clone(),
            trouble: tunnel.trouble.clone(),
        }
    }
}

impl TryFrom<v1::TunnelCheck> for TunnelCheck {
    type Error = Fault;

    fn try_from(tunnel: v1::TunnelCheck) -> Result<Self, Fault> {
        let mut drops = tunnel.drops;
        drops.retain(|cause, _| is_cause(cause));
        Ok(Self {
            backend: backend(tunnel.backend, "check.paths.tunnel.backend")?,
            generation: tunnel.generation,
            handshake_age: tunnel.handshake_age_ms.map(Millis),
            sent_bytes: tunnel.sent_bytes,
            received_bytes: tunnel.received_bytes,
            drops: drops.into_iter().take(TUNNEL_DROPS_MAX).collect(),
            trouble: short(tunnel.trouble),
        })
    }
}

/// The name of a cause is a word, as `wrong-key`.
fn is_cause(text: &str) -> bool {
    let of_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=TUNNEL_DROP_BYTES_MAX).contains(&text.len()) && text.bytes().all(of_word)
}

/// Of bounded length and on one line.
fn short(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(STATUS_TEXT_BYTES_MAX));
    match text.contains(char::is_control) {
        true => text.replace(char::is_control, " "),
        false => text,
    }
}

impl From<&NetworkCheck> for v1::NetworkCheck {
    fn from(check: &NetworkCheck) -> Self {
        Self {
            network: bytes_of(check.network.0),
            problems: check.problems.clone(),
            paths: check.paths.iter().map(Into::into).collect(),
            strangers: check.strangers.iter().map(ToString::to_string).collect(),
        }
    }
}

impl TryFrom<v1::NetworkCheck> for NetworkCheck {
    type Error = Fault;

    fn try_from(check: v1::NetworkCheck) -> Result<Self, Fault> {
        let mut problems = check.problems;
        problems.truncate(CHECK_TEXTS_MAX);
        let strangers = check.strangers.iter().take(CHECK_TEXTS_MAX);
        let mut paths = check.paths;
        paths.truncate(CHECK_PATHS_MAX);
        Ok(Self {
            network: id(&check.network, "check.network")?,
            problems: problems.into_iter().map(short).collect(),
            paths: all(paths)?,
            strangers: strangers.filter_map(|address| address.parse().ok()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use types::{EncryptionBackend, NetworkId, NodeId};

    use super::*;

    fn tunnel() -> TunnelCheck {
        TunnelCheck {
            backend: EncryptionBackend::Kernel,
            generation: 3,
            handshake_age: Some(Millis(1_200)),
            sent_bytes: 10,
            received_bytes: 20,
            drops: [("forged".into(), 2)].into(),
            trouble: "no handshake".into(),
        }
    }

    #[test]
    fn what_a_node_found_comes_back_as_it_was() {
        let path = PathCheck {
            node: NodeId::MAX,
            sent: 50,
            answered: 49,
            round_trip_us: 812,
            wanted: 1_450,
            passes: 1_400,
            tunnel: Some(tunnel()),
        };
        let check = NetworkCheck {
            network: NetworkId::MIN,
            problems: vec!["rules differ".into()],
            paths: vec![path],
            strangers: vec!["192.0.2.7".parse().unwrap(), "fd00::7".parse().unwrap()],
        };
        assert_eq!(NetworkCheck::try_from(v1::NetworkCheck::from(&check)), Ok(check));
        for trouble in [PathTrouble::Silent, PathTrouble::TooLarge(1_450)] {
            let bad = BadPath { network: NetworkId::MAX, node: NodeId::MIN, trouble };
            assert_eq!(BadPath::try_from(v1::BadPath::from(&bad)), Ok(bad));
        }
    }

    #[test]
    fn what_a_node_says_is_bounded() {
        let check = v1::NetworkCheck {
            network: bytes_of(NetworkId::MAX.0),
            problems: vec!["ü".repeat(STATUS_TEXT_BYTES_MAX); 2 * CHECK_TEXTS_MAX],
            strangers: vec!["192.0.2.1".into(); 2 * CHECK_TEXTS_MAX],
            ..v1::NetworkCheck::default()
        };
        let check = NetworkCheck::try_from(check).unwrap();
        assert_eq!(
            (check.problems.len(), check.strangers.len()),
            (CHECK_TEXTS_MAX, CHECK_TEXTS_MAX)
        );
        assert!(check.problems.iter().all(|text| text.len() <= STATUS_TEXT_BYTES_MAX));
        let bad = v1::BadPath {
            network: bytes_of(NetworkId::MAX.0),
            node: bytes_of(NodeId::MIN.0),
            too_large: 0,
        };
        let mut many = v1::TunnelCheck::from(&tunnel());
        many.drops = (0..2 * TUNNEL_DROPS_MAX as u64).map(|nth| (nth.to_string(), nth)).collect();
        many.drops.insert("0".repeat(TUNNEL_DROP_BYTES_MAX + 1), 1);
        for odd in ["", "two words", "\u{1b}[2J", "x\"} 1"] {
            many.drops.insert(odd.into(), 1);
        }
        many.trouble = "ü\u{9b}\n".repeat(STATUS_TEXT_BYTES_MAX);
        let few = TunnelCheck::try_from(many).unwrap();
        assert_eq!(few.drops.len(), TUNNEL_DROPS_MAX);
        assert!(few.trouble.len() <= STATUS_TEXT_BYTES_MAX);
        assert!(few.drops.keys().all(|cause| cause.parse::<u64>().is_ok()));
        assert!(!few.trouble.contains(char::is_control));
        let mut all = vec![bad; 2 * BAD_PATHS_MAX];
        all[0].node = vec![1].into();
        assert_eq!(bad_paths(all).len(), BAD_PATHS_MAX - 1);
    }
}
