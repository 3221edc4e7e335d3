//! What nodes say of the paths between them.
//!
//! Owns: the conversions of a check and of bad paths. Does not know: what is made of them.
//! Invariant: what goes out and comes back is the same; lists that a node sends are bounded here.

use types::limits::{BAD_PATHS_MAX, CHECK_TEXTS_MAX, STATUS_TEXT_BYTES_MAX};
use types::{BadPath, Fault, NetworkCheck, PathCheck, PathTrouble};

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
        })
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
        for text in &mut problems {
            text.truncate(text.floor_char_boundary(STATUS_TEXT_BYTES_MAX));
        }
        let strangers = check.strangers.iter().take(CHECK_TEXTS_MAX);
        Ok(Self {
            network: id(&check.network, "check.network")?,
            problems,
            paths: all(check.paths)?,
            strangers: strangers.filter_map(|address| address.parse().ok()).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use types::{NetworkId, NodeId};

    use super::*;

    #[test]
    fn what_a_node_found_comes_back_as_it_was() {
        let path = PathCheck {
            node: NodeId::MAX,
            sent: 50,
            answered: 49,
            round_trip_us: 812,
            wanted: 1_450,
            passes: 1_400,
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
        let mut all = vec![bad; 2 * BAD_PATHS_MAX];
        all[0].node = vec![1].into();
        assert_eq!(bad_paths(all).len(), BAD_PATHS_MAX - 1);
    }
}
