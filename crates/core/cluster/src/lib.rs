//! Roles of nodes, and who of them votes.
//!
//! Owns: the next step from the members that Raft has to those that the nodes' roles want, and the
//! guards that keep a quorum.
//! Does not know: Raft itself; it is told who is a member and who answers.
//! Invariant: no step is taken after which fewer than a majority of the voters answer.

use std::collections::BTreeSet;

use state::{Author, Change, ChangeSet, Member, Snapshot};
use types::{ConditionCode, ErrorCode, Fault, Node, NodeId, NodeRole};

/// One step; after it, look again.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    AddLearner {
        raft_id: u64,
        node: NodeId,
        address: String,
    },
    Promote {
        raft_id: u64,
    },
    Remove {
        raft_id: u64,
    },
    /// The leader itself is to go: somebody else must lead first.
    TransferLeadership {
        to: u64,
    },
    Write(ChangeSet),
}

/// The next step, or `None` when all is as wanted or nothing can be done safely now.
#[must_use]
pub fn decide_membership(view: &Snapshot, members: &[Member], leader: u64) -> Option<Step> {
    let find = |raft_id: u64| members.iter().find(|member| member.raft_id == raft_id);
    for node in view.nodes() {
        let step = match (node.spec.role, &node.manager) {
            (NodeRole::Manager, _) if node.role == NodeRole::Worker => {
                Some(write(Change::SetNodeRole { id: node.id, role: NodeRole::Manager }))
            }
            (NodeRole::Manager, Some(manager)) => match find(manager.raft_id) {
                None => Some(Step::AddLearner {
                    raft_id: manager.raft_id,
                    node: node.id,
                    address: manager.address.clone(),
                }),
                Some(member) if !member.voter && member.caught_up => {
                    Some(Step::Promote { raft_id: member.raft_id })
                }
                Some(_) => None,
            },
            (NodeRole::Manager, None) => None,
            (NodeRole::Worker, manager) => {
                let member = manager.as_ref().and_then(|manager| find(manager.raft_id));
                decide_demotion(view, node, member, members, leader)
            }
        };
        if step.is_some() {
            return step;
        }
    }
    decide_strangers(view, members, leader)
}

fn decide_demotion(
    view: &Snapshot,
    node: &Node,
    member: Option<&Member>,
    members: &[Member],
    leader: u64,
) -> Option<Step> {
    match member {
        Some(member) => remove(view, member, members, leader),
        None if node.manager.is_some() || node.role == NodeRole::Manager => {
            let changes = vec![
                Change::SetNodeManager { id: node.id, manager: None },
                Change::SetNodeRole { id: node.id, role: NodeRole::Worker },
            ];
            Some(Step::Write(ChangeSet { author: Author::Cluster, changes }))
        }
        None => None,
    }
}

/// Members that no node claims: their node was removed.
fn decide_strangers(view: &Snapshot, members: &[Member], leader: u64) -> Option<Step> {
    let claimed: BTreeSet<u64> =
        view.nodes().filter_map(|node| node.manager.as_ref().map(|m| m.raft_id)).collect();
    let stranger = members.iter().find(|member| !claimed.contains(&member.raft_id))?;
    remove(view, stranger, members, leader)
}

fn remove(view: &Snapshot, member: &Member, members: &[Member], leader: u64) -> Option<Step> {
    if member.raft_id == leader {
        let fit = |m: &&Member| m.voter && m.reachable && m.caught_up && m.raft_id != leader;
        // One that may not stand would hand leadership on at once.
        let heir = members.iter().filter(fit).min_by_key(|m| !may_stand(view, m.raft_id))?;
        return Some(Step::TransferLeadership { to: heir.raft_id });
    }
    keeps_quorum_without(members, member.raft_id)
        .then_some(Step::Remove { raft_id: member.raft_id })
}

/// Whether the member may stand for election: its clock must not be off from the managers'.
#[must_use]
pub fn may_stand(view: &Snapshot, raft_id: u64) -> bool {
    let is_member = |node: &&std::sync::Arc<Node>| {
        node.manager.as_ref().is_some_and(|manager| manager.raft_id == raft_id)
    };
    view.nodes().find(is_member).is_none_or(|node| !node.status.has(ConditionCode::ClockOff))
}

/// Whether those that answer are a majority of the voters that stay.
#[must_use]
pub fn keeps_quorum_without(members: &[Member], raft_id: u64) -> bool {
    let stay: Vec<&Member> = members.iter().filter(|m| m.voter && m.raft_id != raft_id).collect();
    let answer = stay.iter().filter(|member| member.reachable).count();
    !stay.is_empty() && answer > stay.len() / 2
}

fn write(change: Change) -> Step {
    Step::Write(ChangeSet::one(Author::Cluster, change))
}

/// Refuses a demotion that would leave the cluster without managers or without a quorum.
pub fn check_demotion(view: &Snapshot, node: &Node, members: &[Member]) -> Result<(), Fault> {
    let managers = view.nodes().filter(|n| n.spec.role == NodeRole::Manager).count();
    if managers <= 1 {
        return Err(refusal("attempting to demote the last manager of the swarm")
            .hint("promote another node first: shoal node promote NODE"));
    }
    let Some(manager) = &node.manager else { return Ok(()) };
    if !members.iter().any(|m| m.raft_id == manager.raft_id)
        || keeps_quorum_without(members, manager.raft_id)
    {
        return Ok(());
    }
    Err(refusal("can't remove member from the raft: this would result in a loss of quorum")
        .hint("bring the other managers back first, or promote more nodes"))
}

/// Refuses to remove a node that is a manager, or that is not down unless forced.
pub fn check_removal(node: &Node, force: bool) -> Result<(), Fault> {
    let name = node.hostname();
    if node.spec.role == NodeRole::Manager || node.manager.is_some() {
        let message = format!(
            "node {name} is a cluster manager and is a member of the raft cluster. It must be \
             demoted to worker before removal"
        );
        return Err(refusal(message).hint(format!("shoal node demote {name}")));
    }
    if !force && node.status.state == types::NodeState::Ready {
        return Err(refusal(format!("node {name} is not down and can't be removed"))
            .hint("run `shoal swarm leave` on it first, or use --force"));
    }
    Ok(())
}

fn refusal(message: impl Into<String>) -> Fault {
    Fault::new(ErrorCode::FailedPrecondition, message)
}

#[cfg(test)]
mod tests {
    use state::Restore;
    use testkit::{fixture, node_id};
    use types::ManagerStatus;

    use super::*;

    /// Nodes are `name[*]wanted[:raft id]`, a star for those whose certificate is a manager's.
    fn view(nodes: &[(&str, NodeRole, NodeRole, Option<u64>)]) -> Snapshot {
        let mut restore = Restore::new(1, base::Timestamp(1));
        let text: String = nodes.iter().map(|(name, ..)| format!("node {name} ready\n")).collect();
        for node in fixture(&text).view.nodes() {
            let mut node = (**node).clone();
            let (_, wanted, role, raft) =
                nodes.iter().find(|(name, ..)| node_id(name) == node.id).unwrap();
            node.spec.role = *wanted;
            node.role = *role;
            node.manager = raft.map(|raft_id| ManagerStatus { raft_id, address: "x:1".into() });
            restore.node(node);
        }
        restore.finish().unwrap()
    }

    fn member(raft_id: u64, voter: bool, reachable: bool) -> Member {
        Member { raft_id, voter, caught_up: true, reachable }
    }

    use NodeRole::{Manager, Worker};

    #[test]
    fn a_new_manager_learns_then_votes() {
        let view = view(&[("a", Manager, Manager, Some(1)), ("b", Manager, Manager, Some(2))]);
        let one = [member(1, true, true)];
        let step = decide_membership(&view, &one, 1);
        assert_eq!(
            step,
            Some(Step::AddLearner { raft_id: 2, node: node_id("b"), address: "x:1".into() })
        );
        let behind = Member { caught_up: false, ..member(2, false, true) };
        assert_eq!(decide_membership(&view, &[one[0], behind], 1), None);
        let step = decide_membership(&view, &[one[0], member(2, false, true)], 1);
        assert_eq!(step, Some(Step::Promote { raft_id: 2 }));
        assert_eq!(decide_membership(&view, &[one[0], member(2, true, true)], 1), None);
    }

    #[test]
    fn a_demoted_manager_leaves_raft_before_its_role_changes() {
        let nodes = |raft| {
            [
                ("a", Manager, Manager, Some(1)),
                ("b", Worker, Manager, raft),
                ("c", Manager, Manager, Some(3)),
            ]
        };
        let all = [member(1, true, true), member(2, true, true), member(3, true, true)];
        let step = decide_membership(&view(&nodes(Some(2))), &all, 1);
        assert_eq!(step, Some(Step::Remove { raft_id: 2 }));
        let step = decide_membership(&view(&nodes(Some(2))), &[all[0], all[2]], 1);
        assert!(matches!(step, Some(Step::Write(_))), "{step:?}");
    }

    #[test]
    fn a_leader_that_is_demoted_hands_over_first() {
        let view = view(&[("a", Worker, Manager, Some(1)), ("b", Manager, Manager, Some(2))]);
        let members = [member(1, true, true), member(2, true, true)];
        assert_eq!(decide_membership(&view, &members, 1), Some(Step::TransferLeadership { to: 2 }));
        assert_eq!(decide_membership(&view, &members, 2), Some(Step::Remove { raft_id: 1 }));
    }

    #[test]
    fn no_removal_without_a_quorum_of_those_that_stay() {
        let view = view(&[
            ("a", Manager, Manager, Some(1)),
            ("b", Manager, Manager, Some(2)),
            ("c", Worker, Manager, Some(3)),
        ]);
        let members = [member(1, true, true), member(2, true, false), member(3, true, true)];
        assert_eq!(decide_membership(&view, &members, 1), None);
        let fault = check_demotion(&view, view.node(node_id("c")).unwrap(), &members).unwrap_err();
        assert!(fault.message.contains("loss of quorum"));
    }

    #[test]
    fn the_last_manager_cannot_be_demoted() {
        let view = view(&[("a", Manager, Manager, Some(1)), ("b", Worker, Worker, None)]);
        let fault =
            check_demotion(&view, view.node(node_id("a")).unwrap(), &[member(1, true, true)]);
        assert_eq!(
            fault.unwrap_err().message,
            "attempting to demote the last manager of the swarm"
        );
    }

    #[test]
    fn a_promoted_worker_first_gets_the_role_for_its_certificate() {
        let view = view(&[("a", Manager, Manager, Some(1)), ("b", Manager, Worker, None)]);
        let step = decide_membership(&view, &[member(1, true, true)], 1);
        assert!(matches!(step, Some(Step::Write(_))));
    }

    #[test]
    fn a_manager_whose_clock_is_off_does_not_stand() {
        let view = view(&[("a", Manager, Manager, Some(1)), ("b", Manager, Manager, Some(2))]);
        let mut restore = Restore::new(1, base::Timestamp(1));
        for node in view.nodes() {
            let mut node = (**node).clone();
            let message = "clock 60 s ahead".to_owned();
            let code = match node.id == node_id("b") {
                true => ConditionCode::ClockOff,
                false => ConditionCode::DiskFull,
            };
            node.status.conditions = vec![types::Condition::new(code, message)];
            restore.node(node);
        }
        let view = restore.finish().unwrap();
        let all = [member(1, true, true), member(2, true, true), member(3, true, true)];
        let step = |members: &[Member]| remove(&view, &members[0], members, 1);
        assert_eq!(step(&all), Some(Step::TransferLeadership { to: 3 }), "not to b");
        assert_eq!(step(&all[..2]), Some(Step::TransferLeadership { to: 2 }), "there is only b");
        let stand = [1, 2, 3].map(|raft_id| may_stand(&view, raft_id));
        assert_eq!(stand, [true, false, true], "one that is not known yet is not hindered");
    }

    #[test]
    fn members_whose_node_was_removed_go() {
        let view = view(&[("a", Manager, Manager, Some(1))]);
        let members = [member(1, true, true), member(9, true, false)];
        assert_eq!(decide_membership(&view, &members, 1), Some(Step::Remove { raft_id: 9 }));
    }

    #[test]
    fn managers_and_living_nodes_are_not_removed() {
        let view = view(&[("a", Manager, Manager, Some(1)), ("b", Worker, Worker, None)]);
        assert!(check_removal(view.node(node_id("a")).unwrap(), true).is_err());
        assert!(check_removal(view.node(node_id("b")).unwrap(), false).is_err());
        assert!(check_removal(view.node(node_id("b")).unwrap(), true).is_ok());
    }
}
