//! `shoal network check`.
//!
//! Owns: how paths between nodes are shown, progress, and when the check has failed.
//! Does not know: how a path is looked at, and what is wrong with one; the managers say it.
//! Invariant: what is wrong is in the answer and in the exit code, whatever the format.

use std::io::{self, IsTerminal, Write};

use base::Millis;
use serde_json::json;
use types::EncryptionBackend;
use wire::v1;
use wire::v1::check_networks_item::Item;

use crate::args::ListFormat;
use crate::args::network::Check;
use crate::client::Daemon;
use crate::error::CliError;
use crate::output::{List, Row, human, row_of};

pub(super) async fn run(daemon: &mut Daemon, args: &Check) -> Result<(), CliError> {
    let request = v1::CheckNetworksRequest { refs: args.networks.clone(), only_bad: args.quiet };
    let mut items = daemon.control.check_networks(request).await?.into_inner();
    let mut progress = Progress::new();
    let (mut rows, mut bad) = (Vec::new(), 0);
    while let Some(item) = items.message().await? {
        match item.item {
            Some(Item::Progress(now)) => progress.show(&now),
            Some(Item::Path(path)) => {
                bad += usize::from(!path.problem.is_empty());
                rows.push(row(&path));
            }
            None => {}
        }
    }
    progress.end();
    let format = ListFormat { format: args.format.clone(), quiet: args.quiet };
    PATHS.print(&format, &rows, &mut io::stdout().lock())?;
    match bad {
        0 => Ok(()),
        1 => Err(CliError::failed("one thing is not as it should be")),
        count => Err(CliError::failed(format!("{count} things are not as they should be"))),
    }
}

const PATHS: List = List {
    table: "{{.Network}}\t{{.Node}}\t{{.Peer}}\t{{.Loss}}\t{{.RoundTrip}}\t{{.MTU}}\t{{.State}}",
    heads: &[
        ("Network", "NETWORK"),
        ("Node", "NODE"),
        ("Peer", "PEER"),
        ("Address", "ADDRESS"),
        ("Loss", "LOSS"),
        ("RoundTrip", "ROUND TRIP"),
        ("MTU", "MTU"),
        ("State", "STATE"),
        ("Encryption", "ENCRYPTION"),
        ("Handshake", "HANDSHAKE"),
        ("Sent", "SENT"),
        ("Received", "RECEIVED"),
        ("Drops", "DROPS"),
        ("Problem", "PROBLEM"),
        ("Summary", "SUMMARY"),
    ],
    id: "Summary",
};

fn row(path: &v1::CheckedPath) -> Row {
    let answered = path.mtu > 0;
    let of_path = |text: String| if path.peer.is_empty() { String::new() } else { text };
    let peer = of_path(format!(" -> {}", path.peer));
    let state = if path.problem.is_empty() { "ok" } else { path.problem.as_str() };
    let mtu = match (path.mtu, path.mtu_wanted) {
        (0, _) => String::new(),
        (mtu, wanted) if mtu < wanted => format!("{mtu} of {wanted}"),
        (mtu, _) => mtu.to_string(),
    };
    let of_tunnel = |text: &dyn Fn(&v1::TunnelCheck) -> String| {
        path.tunnel.as_ref().map(text).unwrap_or_default()
    };
    row_of(json!({
        "Network": path.network,
        "Node": path.node,
        "Peer": path.peer,
        "Address": path.address,
        "Loss": if answered { of_path(format!("{}%", path.loss_percent)) } else { String::new() },
        "RoundTrip": if answered { milliseconds(path.round_trip_us) } else { String::new() },
        "MTU": mtu,
        "State": state,
        "Encryption": of_tunnel(&|tunnel| backend(tunnel.backend)),
        "Handshake": of_tunnel(&handshake),
        "Sent": of_tunnel(&|tunnel| human::size(tunnel.sent_bytes)),
        "Received": of_tunnel(&|tunnel| human::size(tunnel.received_bytes)),
        "Drops": of_tunnel(&drops),
        "Problem": path.problem,
        "Summary": format!("{}: {}{peer}: {state}", path.network, path.node),
    }))
}

fn backend(number: u32) -> String {
    let backend = i32::try_from(number).ok().and_then(EncryptionBackend::from_number);
    backend.map_or("unknown", EncryptionBackend::name).to_owned()
}

fn handshake(tunnel: &v1::TunnelCheck) -> String {
    let age = tunnel.handshake_age_ms;
    age.map_or_else(|| "none".to_owned(), |age| human::duration(Millis(age)) + " ago")
}

/// By cause, without those that did not occur.
fn drops(tunnel: &v1::TunnelCheck) -> String {
    let occurred = tunnel.drops.iter().filter(|(_, count)| **count > 0);
    occurred.map(|(cause, count)| format!("{cause} {count}")).collect::<Vec<_>>().join(", ")
}

fn milliseconds(micros: u64) -> String {
    format!("{}.{:02}ms", micros / 1_000, micros % 1_000 / 10)
}

/// One line on a terminal, which is gone in the end.
struct Progress {
    shown: bool,
}

impl Progress {
    fn new() -> Self {
        Self { shown: false }
    }

    fn show(&mut self, now: &v1::CheckProgress) {
        let mut err = io::stderr();
        if err.is_terminal() {
            self.shown = true;
            // A terminal that cannot be written to shows nothing, which does no harm.
            let _ = write!(err, "\r{} of {} nodes have answered", now.answered, now.asked);
            let _ = err.flush();
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path() -> v1::CheckedPath {
        v1::CheckedPath {
            network: "back".into(),
            node: "a".into(),
            peer: "b".into(),
            address: "192.0.2.2".into(),
            loss_percent: 0,
            round_trip_us: 1_234,
            mtu: 1_450,
            mtu_wanted: 1_450,
            problem: String::new(),
            tunnel: None,
        }
    }

    #[test]
    fn a_path_is_one_line_and_says_what_is_wrong() {
        let shown =
            |path: &v1::CheckedPath, field: &str| row(path)[field].as_str().unwrap().to_owned();
        let good = path();
        for (field, want) in [
            ("Loss", "0%"),
            ("RoundTrip", "1.23ms"),
            ("MTU", "1450"),
            ("State", "ok"),
            ("Summary", "back: a -> b: ok"),
        ] {
            assert_eq!(shown(&good, field), want, "{field}");
        }
        let cut = v1::CheckedPath { mtu: 1_400, problem: "wrong MTU".into(), ..path() };
        assert_eq!(shown(&cut, "MTU"), "1400 of 1450");
        assert_eq!(shown(&cut, "State"), "wrong MTU");
        let silent =
            v1::CheckedPath { mtu: 0, loss_percent: 100, problem: "no answer".into(), ..path() };
        assert_eq!((shown(&silent, "Loss"), shown(&silent, "RoundTrip")), Default::default());
        let own = v1::CheckedPath {
            network: "back".into(),
            node: "a".into(),
            problem: "it is down".into(),
            ..v1::CheckedPath::default()
        };
        assert_eq!(shown(&own, "Summary"), "back: a: it is down");
        assert_eq!(shown(&good, "Encryption"), "");
    }

    #[test]
    fn a_tunnel_is_shown_where_there_is_one() {
        let tunnel = v1::TunnelCheck {
            backend: 1,
            generation: 2,
            handshake_age_ms: Some(61_000),
            sent_bytes: 1_234_000,
            received_bytes: 0,
            drops: [("forged".into(), 2), ("replayed".into(), 0)].into(),
            trouble: String::new(),
        };
        let path = v1::CheckedPath { tunnel: Some(tunnel), ..path() };
        let row = row(&path);
        for (field, want) in [
            ("Encryption", "kernel"),
            ("Handshake", "About a minute ago"),
            ("Sent", "1.23MB"),
            ("Received", "0B"),
            ("Drops", "forged 2"),
        ] {
            assert_eq!(row[field].as_str(), Some(want), "{field}");
        }
    }
}
