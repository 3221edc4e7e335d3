//! Nodes, as users see and change them.
//!
//! Owns: lists, updates, promotion, demotion and removal.
//! Does not know: how a demotion is carried out; the membership loop does.
//! Invariant: what would cost the quorum is refused here, before anything is stored.

use ports::Clock;
use ports::store::Store;
use state::{Change, Snapshot};
use types::{Condition, ConditionCode, Fault, Node, NodeRole, NodeSpec};
use wire::v1;

use super::{ControlApi, find};

impl<S: Store, C: Clock> ControlApi<S, C> {
    pub(super) async fn list_nodes(
        &self,
        request: v1::ListNodesRequest,
    ) -> Result<v1::NodeList, Fault> {
        let (view, freshness) = self.read().await?;
        let nodes = view.nodes().filter(|node| is_listed(&request, node));
        let nodes = nodes.map(|node| self.node_view(&view, node)).collect();
        Ok(v1::NodeList { nodes, freshness: Some(freshness) })
    }

    pub(super) async fn get_node(&self, request: v1::ObjectRef) -> Result<v1::NodeView, Fault> {
        let (view, _) = self.read().await?;
        Ok(self.node_view(&view, find::node(&view, &request.r#ref)?))
    }

    pub(super) async fn update_node(
        &self,
        request: v1::UpdateNodeRequest,
    ) -> Result<v1::NodeView, Fault> {
        let id = wire::id(&request.id, "id")?;
        let spec = request.spec.ok_or_else(|| Fault::invalid("spec", "is missing"))?;
        let spec = NodeSpec::try_from(spec)?;
        types::check_node_spec(&spec)?;
        let view = self.store.snapshot();
        if let Some(node) = view.node(id)
            && node.spec.role == NodeRole::Manager
            && spec.role == NodeRole::Worker
        {
            cluster::check_demotion(&view, node, &self.store.members())?;
        }
        self.write(vec![Change::UpdateNode { id, expect: request.spec_version, spec }]).await?;
        let view = self.store.snapshot();
        Ok(self.node_view(&view, find::node(&view, &id.to_string())?))
    }

    pub(super) async fn remove_node(
        &self,
        request: v1::RemoveNodeRequest,
    ) -> Result<v1::Empty, Fault> {
        let view = self.store.snapshot();
        let node = find::node(&view, &request.r#ref)?;
        cluster::check_removal(node, request.force)?;
        self.write(vec![Change::RemoveNode(node.id)]).await?;
        Ok(v1::Empty {})
    }

    /// What the store says is wrong with a node; of this manager itself it may not be able to know.
    fn conditions_of(&self, node: &Node) -> Vec<Condition> {
        let mut conditions = node.status.conditions.clone();
        if node.manager.as_ref().is_some_and(|m| m.raft_id == self.store.raft_id()) {
            conditions.retain(|condition| condition.code == ConditionCode::ClockOff);
            conditions.extend(self.conditions.borrow().iter().cloned());
        }
        conditions
    }

    fn node_view(&self, view: &Snapshot, node: &Node) -> v1::NodeView {
        let leader = self.store.leadership().borrow().leader.clone().map(|(id, _)| id);
        let raft_id = node.manager.as_ref().map(|manager| manager.raft_id);
        let members = self.store.members();
        let member = members.iter().find(|member| Some(member.raft_id) == raft_id);
        v1::NodeView {
            node: Some(node.into()),
            leader: raft_id.is_some() && raft_id == leader,
            // One that does not vote yet is no manager to count on, wherever it is.
            reachable: member
                .filter(|member| member.voter)
                .map(|member| member.raft_id == self.store.raft_id() || member.reachable),
            conditions: self.conditions_of(node).into_iter().map(|c| c.message).collect(),
            tasks: u64::from(view.usage(node.id).tasks),
        }
    }
}

fn is_listed(request: &v1::ListNodesRequest, node: &Node) -> bool {
    find::any_prefix(&request.ids, &node.id.to_string())
        && find::any_prefix(&request.names, node.hostname())
        && (request.roles.is_empty() || request.roles.contains(&(node.spec.role as i32)))
        && find::has_labels(&node.spec.labels, &request.node_labels)
        && find::has_labels(&node.description.engine_labels, &request.engine_labels)
}
