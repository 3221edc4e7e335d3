//! Heartbeats: that this node lives, what is wrong with it, and whose clock is ahead.
//!
//! Owns: what a heartbeat says, and the comparison of clocks by its answer.
//! Does not know: what the managers make of it.
//! Invariant: a comparison comes with the bound of its error, which is half of the round trip.

use base::Millis;
use ports::network::Network;
use ports::runtime::Runtime;
use ports::{Clock, SessionDialer};
use wire::v1::node_message::Message as Out;
use wire::v1::{self, ManagerMessage, NodeMessage};

use super::{Agent, Connection};
use crate::logs::LogUplink;

impl<R, N, C, D> Agent<R, N, C, D>
where
    R: Runtime,
    N: Network,
    C: Clock,
    D: SessionDialer<NodeMessage, ManagerMessage> + LogUplink,
{
    /// Sends a heartbeat, and the next one a period later.
    pub(super) fn beat(&mut self) {
        let now = self.node.clock.monotonic();
        let Connection::Up(session) = &mut self.connection else { return };
        session.next_heartbeat = Millis(now.0 + beat_period(session.heartbeat).0);
        // Answers come in order: it is the oldest question that the next one belongs to.
        session.asked.get_or_insert(now);
        let conditions = self.conditions.borrow_and_update().iter().map(Into::into).collect();
        let beat = v1::Heartbeat {
            clock_ahead_ms: session.ahead.map(|(ahead, _)| ahead),
            clock_error_ms: session.ahead.map_or(0, |(_, error)| error),
            conditions,
            paths: self.contact.links.bad.borrow().iter().map(Into::into).collect(),
        };
        self.send(Out::Heartbeat(beat));
    }

    /// Reads the manager's clock off the answer to a heartbeat.
    pub(super) fn compare_clocks(&mut self, now: Millis, manager_ms: u64) {
        let wall = self.node.clock.now();
        if let Connection::Up(session) = &mut self.connection
            && let Some(asked) = session.asked.take()
        {
            session.ahead = Some(clock_ahead(wall.0, manager_ms, now.0.saturating_sub(asked.0)));
        }
    }
}

/// Beats come more often than a long heartbeat asks for: a node that is away must be suspected long
/// before its tasks are replaced.
pub(super) fn beat_period(heartbeat: Millis) -> Millis {
    heartbeat.min(types::limits::BEAT_PERIOD_MAX)
}

/// How far the own clock is ahead of one that was read within the last `round_ms`, and by how much
/// that may be wrong: the answer was given somewhere in between.
fn clock_ahead(own_ms: u64, read_ms: u64, round_ms: u64) -> (i64, u64) {
    let error = round_ms.div_ceil(2);
    let then = read_ms.saturating_add(error);
    let distance = i64::try_from(own_ms.abs_diff(then)).unwrap_or(i64::MAX);
    (if own_ms < then { -distance } else { distance }, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_compared_at_half_of_the_round_trip() {
        for (own, read, round, want) in [
            (1_000, 1_000, 0, (0, 0)),
            (61_050, 1_000, 100, (60_000, 50)),
            (1_050, 61_000, 100, (-60_000, 50)),
            (1_000, 1_000, 3, (-2, 2)),
            (0, u64::MAX, u64::MAX, (-i64::MAX, u64::MAX / 2 + 1)),
        ] {
            assert_eq!(clock_ahead(own, read, round), want, "{own} {read} {round}");
        }
    }
}
