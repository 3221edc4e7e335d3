//! Every bound of this crate, with its reason.
//!
//! Owns: the numbers that are not options. Does not know: who uses them.
//! Invariant: a bound that a caller can meet is also named in the error that reports it.

use std::time::Duration;

/// Largest proposal. Docker's limit is 1.5 MiB; twice that leaves room and stays streamable.
pub const PROPOSAL_BYTES_MAX: usize = 3 * 1024 * 1024;
/// Size of a log segment: large enough that rolling is rare, small enough to zero in advance.
pub const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
/// End of each segment that only votes and the like may use, so that a full disk stops no vote.
pub const SEGMENT_RESERVE_BYTES: u64 = 64 * 1024;
/// One frame of the log; an entry is a proposal plus a few bytes.
pub const FRAME_BYTES_MAX: usize = PROPOSAL_BYTES_MAX + 4 * 1024;
/// Bytes of one group commit.
pub const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A commit that takes longer is worth a line in the log: the disk, or its neighbours, are slow.
pub const SLOW_COMMIT: Duration = Duration::from_secs(1);
/// Operations waiting for the log's writer.
pub const WRITER_QUEUE_MAX: usize = 4_096;
/// Recent entries kept in memory, by bytes; older ones are read from the log.
pub const CACHE_BYTES_MAX: usize = 32 * 1024 * 1024;
/// Entries of one read, by bytes: what one append to a follower carries.
pub const READ_BYTES_MAX: usize = 1024 * 1024;
/// Entries of one append to a follower, by number.
pub const APPEND_ENTRIES_MAX: u64 = 512;
/// Entries handed to the state machine together.
pub const APPLY_BATCH_MAX: usize = 512;
/// Entries waiting for the thread of the state machine.
pub const APPLY_QUEUE_MAX: usize = 4;
/// How long to wait before trying again to make room for the log.
pub const SPACE_RETRY: Duration = Duration::from_millis(500);
/// Period of the look at free space.
pub const SPACE_PERIOD: Duration = Duration::from_millis(500);
/// A leader that cannot give up leadership for want of space tries again after this long.
pub const SPACE_TRANSFER_RETRY: Duration = Duration::from_secs(15);
/// How long the handing over of leadership may take, with its repetitions.
pub const TRANSFER_LIMIT: Duration = Duration::from_secs(5);
/// Plain bytes of one sealed piece of a snapshot, on disk and on the wire.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 * 1024;
/// Pieces of a snapshot under way between its reader and the connection.
pub const SNAPSHOT_CHUNKS_QUEUED: usize = 8;
/// A snapshot transfer without progress for this long is given up.
pub const SNAPSHOT_IDLE: Duration = Duration::from_secs(30);
/// A whole snapshot, with its installation.
pub const SNAPSHOT_LIMIT: Duration = Duration::from_secs(15 * 60);
/// A snapshot that could not be written for want of space is tried again after this long.
pub const SNAPSHOT_RETRY: Duration = Duration::from_secs(2);
/// Size of a message between managers: a full read plus one largest entry.
pub const MESSAGE_BYTES_MAX: usize = READ_BYTES_MAX + FRAME_BYTES_MAX + 64 * 1024;
/// Connections waiting to be taken over by the raft thread.
pub const CONNECTIONS_QUEUED: usize = 64;
/// First pause before a proposal is tried again while leadership is being confirmed.
pub const PROPOSE_RETRY: Duration = Duration::from_millis(5);
/// A member further behind than this many entries is not made a voter.
pub const PROMOTE_LAG_MAX: u64 = 200;
/// Pause between looks at a learner's progress.
pub const PROMOTE_POLL: Duration = Duration::from_millis(20);
/// Niceness asked for the raft thread; refused without the right, which is only logged.
pub const RAFT_THREAD_NICE: i32 = -15;
/// Members of a cluster's raft: seven managers, and room while they are replaced.
pub const MEMBERS_MAX: usize = 32;
/// Length of a member's address.
pub const ADDRESS_BYTES_MAX: usize = 512;
