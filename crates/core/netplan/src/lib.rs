//! What the kernel of one node should hold, so that its containers reach what they may reach.
//!
//! Owns: routes, neighbours, forwarding entries and filter elements wanted in each namespace of the
//! node, how new connections are spread, and the smallest change from one state to the next.
//! Does not know: netlink, nftables' bytes, which namespace lies where.
//! Invariant: the state wanted depends on the directory and the containers alone, never on the
//! order of what was learned; only which slot a backend has in a balancer depends on what was
//! before.

mod balance;
mod directory;
mod keys;
mod local;
mod mesh;
mod numbers;
mod overlay;
pub mod paths;
mod plan;
mod ports;
pub mod rotation;
mod state;
mod suspicion;
mod tunnel;
mod update;

pub use balance::{CLASSES, Step, class_of, rearrange};
pub use keys::Bytes;
pub use local::{Bridge, Surroundings, choose_subnets};
pub use mesh::{MeshLinks, RETURN_TABLE};
pub use numbers::{
    GATEWAY_HARDWARE, HOST_HARDWARE, MARK, MARK_MASK, MESH_HARDWARE, RETURN_HARDWARE, RETURN_HOP,
    link_v4, link_v6, mark_of, node_hardware, number_of, task_hardware, tunnel_v4,
};
pub use overlay::MAIN as MAIN_TABLE;
pub use plan::{AskedBy, HostPortPlan, LocalContainer, LocalLink, Planner, Scope};
pub use state::{
    Changes, Edit, Elements, Hardware, LinkName, RouteKey, RouteTo, Surplus, Value, Wanted,
};
pub use suspicion::suspects;
pub use tunnel::TunnelNode;
pub use update::{Begun, ROUTES_AT_ONCE};

/// Names of links inside our namespaces.
pub mod link {
    pub const LOOPBACK: &str = "lo";
    pub const VXLAN: &str = "vx";
    /// Of the mesh namespace, to the host.
    pub const UP: &str = "up";
    /// Every container's begins so.
    pub const TASK_PREFIX: &str = "t";
    /// Of the tunnel's namespace; generations of keys take turns.
    pub const TUNNELS: [&str; 2] = ["wg0", "wg1"];

    #[must_use]
    pub const fn tunnel(generation: u32) -> &'static str {
        TUNNELS[(generation % 2) as usize]
    }
}

/// Names of sets and maps, in the tables that the shell makes.
pub mod set {
    /// The size class of each virtual address; where each class leads, and each slot.
    pub const VIP4: &str = "svc4";
    pub const VIP6: &str = "svc6";
    /// The backend of a virtual address in each of its slots, where there are more.
    pub const BACKEND4: &str = "be4";
    pub const BACKEND6: &str = "be6";
    pub const CLASS: &str = "class";
    pub const SLOT: &str = "slot";
    /// Up to so many backends of a virtual address stand in blocks, each of them with several. In
    /// the kernel an entry takes little more memory for a block than for one address.
    pub const SLOTS_IN_BLOCKS: usize = 20;
    pub const PER_BLOCK4: usize = 5;
    pub const PER_BLOCK6: usize = 2;
    pub const BLOCKS4: [&str; SLOTS_IN_BLOCKS / PER_BLOCK4] = ["be4b0", "be4b1", "be4b2", "be4b3"];
    pub const BLOCKS6: [&str; SLOTS_IN_BLOCKS / PER_BLOCK6] =
        ["be6b0", "be6b1", "be6b2", "be6b3", "be6b4", "be6b5", "be6b6", "be6b7", "be6b8", "be6b9"];
    /// Pairs of one and the same local address: a connection of a task to itself.
    pub const SELF4: &str = "hp4";
    pub const SELF6: &str = "hp6";

    pub const PUBLISHED4: &str = "pub4";
    pub const PUBLISHED6: &str = "pub6";
    pub const TARGET4: &str = "pb4";
    pub const TARGET6: &str = "pb6";
    /// Address, protocol and port of local tasks that other nodes may forward to.
    pub const LOCAL4: &str = "local4";
    pub const LOCAL6: &str = "local6";
    /// Link and address of each local container.
    pub const SOURCE4: &str = "src4";
    pub const SOURCE6: &str = "src6";
    /// Links of containers that may reach the world.
    pub const OUTWARD: &str = "out";
    /// Where an address of the node, with a port, leads: one container.
    pub const HELD4: &str = "held4";
    pub const HELD6: &str = "held6";
    /// Ports of the mesh on some addresses only, and those addresses with them.
    pub const NARROW: &str = "narrow";
    pub const OPEN4: &str = "open4";
    pub const OPEN6: &str = "open6";
    /// Addresses of nodes.
    pub const NODES4: &str = "nodes4";
    pub const NODES6: &str = "nodes6";

    /// Ports of nodes that are no container's business.
    pub const GUARDED: &str = "guarded";
    pub const MANAGERS4: &str = "managers4";
    pub const MANAGERS6: &str = "managers6";

    /// Published on every address of the host.
    pub const PORTS: &str = "ports";
    /// On one, with the address of the mesh that it leads to.
    pub const BOUND4: &str = "bound4";
    pub const BOUND6: &str = "bound6";
    /// Links of the host's that are bridges of ours, of these the internal ones and those whose
    /// traffic gets the host's address, and each with itself.
    pub const BRIDGES: &str = "bridges";
    pub const CLOSED: &str = "closed";
    pub const MASKED: &str = "masked";
    pub const WITHIN: &str = "within";
    /// VXLAN network identifiers of ours, and who may send with each.
    pub const VNIS: &str = "vnis";
    /// Those of them that the host neither takes nor sends: they are encrypted.
    pub const SEALED: &str = "sealed";
    pub const MEMBERS4: &str = "members4";
    pub const MEMBERS6: &str = "members6";
}
