//! Every limit of the domain, with its reason.
//!
//! Owns: numbers only. Invariant: what exceeds one is refused where it enters, with the field.

use base::Millis;

/// A DNS label (RFC 1035, section 2.3.4): the name is one in discovery.
pub const NAME_CHARS_MAX: usize = 63;
/// Replicas of one service; a million tasks is what a cluster is designed for.
pub const REPLICAS_MAX: u64 = 1_000_000;
/// Services of one cluster: ten times the design figure of 10,000.
pub const SERVICES_MAX: usize = 200_000;
/// Tasks of one cluster: the design figure, with history.
pub const TASKS_MAX: usize = 4_000_000;
/// Nodes of one cluster: the design figure of 10,000, and room.
pub const NODES_MAX: usize = 20_000;
/// Labels of one object, and bytes of all their keys and values together.
pub const LABELS_MAX: usize = 1_000;
pub const LABEL_BYTES_MAX: usize = 64 * 1024;
/// Entries of one list of a spec (environment, arguments, constraints, capabilities…).
pub const LIST_ENTRIES_MAX: usize = 4_096;
/// Bytes of one text of a spec: the kernel's MAX_ARG_STRLEN.
pub const TEXT_BYTES_MAX: usize = 128 * 1024;
/// Bytes of a whole service spec: small enough for one log entry.
pub const SPEC_BYTES_MAX: usize = 1024 * 1024;
/// Smallest CPU limit: a thousandth of a core, as docker's.
pub const CPU_NANOS_MIN: u64 = 1_000_000;
/// Smallest memory limit, as docker's.
pub const MEMORY_BYTES_MIN: u64 = 4 * 1024 * 1024;
/// Largest duration of a spec: a year. Longer ones are mistakes, and sums stay far from overflow.
pub const DURATION_MAX: Millis = Millis::from_secs(365 * 86_400);
/// Certificates live at least an hour (as Swarm's) and at most ten years.
pub const CERTIFICATE_EXPIRY_MIN: Millis = Millis::from_secs(3_600);
pub const CERTIFICATE_EXPIRY_MAX: Millis = Millis::from_secs(10 * 365 * 86_400);
/// Dispatcher heartbeat: shorter costs managers, longer delays every repair.
pub const HEARTBEAT_MIN: Millis = Millis(500);
pub const HEARTBEAT_MAX: Millis = Millis::from_secs(300);
/// A node beats at least this often, whatever the heartbeat, so that it can be suspected in time.
pub const BEAT_PERIOD_MAX: Millis = Millis::from_secs(1);
/// Silence after which a node is suspected: its tasks get no new connections, as long as others
/// can take them.
pub const SUSPICION_PERIOD: Millis = Millis::from_secs(3);
/// A stop is held back at most this long for nodes that still send to the task.
pub const DEPARTURE_WAIT_MAX: Millis = Millis::from_secs(2);
/// Open connections of a task that leaves are waited for at most this long.
pub const DRAIN_LIMIT_DEFAULT: Millis = Millis::from_secs(5);
/// Seconds for which an address of a task may be kept by who asked for its name.
pub const TASK_NAME_TTL: Millis = Millis::from_secs(1);
/// Task history per slot: more makes every list slow.
pub const TASK_HISTORY_MAX: i64 = 1_000;
/// Text of a task's error or message that goes through the store.
pub const STATUS_TEXT_BYTES_MAX: usize = 1_024;
/// Bad paths to other nodes that a node reports; more of them say nothing else.
pub const BAD_PATHS_MAX: usize = 32;
/// Texts, and addresses, that a node says of one network when it is checked.
pub const CHECK_TEXTS_MAX: usize = 32;
/// Paths that a node says of one network: one to each other node.
pub const CHECK_PATHS_MAX: usize = NODES_MAX;
/// Causes of drops that a node names for a peer.
pub const TUNNEL_DROPS_MAX: usize = 32;
/// Bytes of the name of one.
pub const TUNNEL_DROP_BYTES_MAX: usize = 64;
/// Of the nodes that are watched, at most one in so many may be suspected: more are a sign of
/// trouble at the end of the one who watches.
pub const SUSPECTS_ONE_IN: usize = 3;
/// Images that a node reports; more are left out, which only costs a preference.
pub const REPORTED_IMAGES_MAX: usize = 1_000;
/// Restart times remembered per slot: enough for every `--restart-max-attempts` up to it.
pub const TALLY_TIMES_MAX: usize = 100;
/// Longest delay between restarts of a slot that keeps failing.
pub const RESTART_BACKOFF_MAX: Millis = Millis::from_secs(300);
/// How long a removed node's certificate stays refused.
pub const REMOVED_NODE_MEMORY: Millis = Millis::from_secs(10 * 365 * 86_400);

/// Networks of one cluster: ten times the design figure of 1,000.
pub const NETWORKS_MAX: usize = 10_000;
/// Networks that one node has for itself: each is a link of the host.
pub const LOCAL_NETWORKS_MAX: usize = 1_000;
/// Networks that one container is on, those connected later included.
pub const NETWORKS_PER_CONTAINER_MAX: usize = 128;
/// Networks of one service: as many interfaces as a container can sensibly have.
pub const NETWORKS_PER_SERVICE_MAX: usize = 64;
/// Ports of one service; a range counts each of its ports.
pub const PORTS_PER_SERVICE_MAX: usize = 4_096;
/// Subnets of one network: what one that keeps growing may come to.
pub const SUBNETS_PER_NETWORK_MAX: usize = 256;
/// Fixed addresses of one service on one network.
pub const FIXED_ADDRESSES_MAX: usize = 4_096;
/// Ports that a node names as held by others; the words of its condition say less.
pub const CONDITION_PORTS_MAX: usize = 256;
/// Host routes that a node reports; further ones are left out, the widest stay.
pub const REPORTED_ROUTES_MAX: usize = 512;
/// The smallest packet that IPv4 and IPv6 must carry (RFC 791, RFC 8200), and the largest there is.
pub const MTU_MIN: u32 = 576;
pub const MTU_V6_MIN: u32 = 1_280;
pub const MTU_MAX: u32 = 65_535;
/// VXLAN network identifiers that are given out: docker's begin there; 24 bits.
pub const VNI_MIN: u32 = 4_096;
pub const VNI_MAX: u32 = (1 << 24) - 1;
/// Dynamic ports of the mesh, as docker's.
pub const MESH_PORT_MIN: u16 = 30_000;
pub const MESH_PORT_MAX: u16 = 32_767;
/// An address, a dynamic port or a VXLAN network identifier is not given out again for this long
/// after it was freed: names and flows that still point to it must not reach somebody else.
pub const REST_PERIOD: Millis = Millis::from_secs(60);

/// Pools that subnets of networks are cut of.
pub const ADDRESS_POOLS_MAX: usize = 64;
/// A node that has not carried out for so long what it was told of its networks is marked, and
/// while it is nothing ends its rest. A rebased wait may take twice as long: less than a rest.
pub const BEHIND_AFTER: Millis = Millis::from_secs(20);
const _: () = assert!(2 * BEHIND_AFTER.0 < REST_PERIOD.0);

/// A clock that differs more from the managers' is marked, and its manager does not lead.
pub const CLOCK_TOLERANCE: Millis = Millis::from_secs(10);
/// Tasks of a node that is down for this long are given up, as Swarm's.
pub const NODE_ORPHAN_PERIOD: Millis = Millis::from_secs(24 * 3_600);

/// What VXLAN adds to a packet, by the family of the addresses around it (RFC 7348, section 5).
pub const VXLAN_OVERHEAD_V4: u32 = 50;
pub const VXLAN_OVERHEAD_V6: u32 = 70;
/// What an encrypted network adds: VXLAN over IPv4, for the tunnel inside has IPv4 addresses, and
/// around it WireGuard: 32 of its own, 8 of UDP, 40 of IPv6. One figure for both families: 20 bytes
/// are the price for a network that goes on when nodes get IPv6 addresses.
pub const ENCRYPTED_OVERHEAD: u32 = VXLAN_OVERHEAD_V4 + 80;

// Defaults, docker's where docker has one.
/// UDP port of VXLAN, as docker's and IANA's.
pub const DATA_PATH_PORT_DEFAULT: u16 = 4789;

/// UDP ports of encrypted networks: below those that systems give out by themselves, assigned to
/// nobody, and not the 51820 that other tunnels of a host have.
pub const ENCRYPTION_PORTS_DEFAULT: [u16; 2] = [4793, 4794];

/// Keys that a node may have at a time: an old one and a new one.
pub const NETWORK_KEYS_PER_NODE_MAX: usize = 2;
pub const STOP_GRACE_DEFAULT: Millis = Millis::from_secs(10);
pub const RESTART_DELAY_DEFAULT: Millis = Millis::from_secs(5);
pub const UPDATE_MONITOR_DEFAULT: Millis = Millis::from_secs(5);
pub const TASK_HISTORY_DEFAULT: i64 = 5;
pub const HEARTBEAT_DEFAULT: Millis = Millis::from_secs(5);
pub const CERTIFICATE_EXPIRY_DEFAULT: Millis = Millis::from_secs(90 * 86_400);
pub const SNAPSHOT_INTERVAL_DEFAULT: u64 = 10_000;
/// From a node's last heartbeat until its tasks are replaced: three heartbeats, as Swarm's.
pub const DOWN_GRACE_DEFAULT: Millis = Millis::from_secs(15);
/// Highest format level that this build knows.
pub const FORMAT_LEVEL: u32 = 1;
