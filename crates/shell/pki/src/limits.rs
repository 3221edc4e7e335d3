//! Every bound of this crate, with its reason.
//!
//! Owns: the numbers. Does not know: who uses them.
//! Invariant: a bound that a user can meet is also named in the error that reports it.

use std::time::Duration;

use base::Millis;

/// Life of a node certificate unless the cluster says otherwise: 90 days, as docker's.
pub const CERTIFICATE_EXPIRY_DEFAULT: Millis = Millis::from_secs(90 * 24 * 3_600);
/// Shorter lives leave no room for a renewal with retries.
pub const CERTIFICATE_EXPIRY_MIN: Millis = Millis::from_secs(3_600);
/// Certificates begin this long before they are issued, for clocks that run late.
pub const CERTIFICATE_BACKDATE: Millis = Millis::from_secs(3_600);
/// Life of a cluster's root certificate: 20 years, as docker's.
pub const ROOT_EXPIRY: Millis = Millis::from_secs(20 * 365 * 24 * 3_600);

/// A signing request is a few hundred bytes; nothing honest is larger.
pub const CSR_BYTES_MAX: usize = 16 * 1024;
/// A chain holds a leaf, at most two cross-signed roots and the root.
pub const CHAIN_CERTIFICATES_MAX: usize = 8;

/// Connections whose handshake is not done yet, together.
pub const HANDSHAKES_MAX: usize = 1_024;
/// Connections of a diverted protocol whose handshake is not done yet, together.
pub const DIVERTED_HANDSHAKES_MAX: usize = 512;
/// What is diverted is urgent, between machines that answer at once: the rest is in the way.
pub const DIVERTED_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// When all places are taken, a handshake older than this gives up its place.
pub const HANDSHAKE_EVICT_AGE: Duration = Duration::from_millis(500);
/// From accept or dial to a finished handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// From a finished handshake to a peer's greeting, which clients send at once.
pub const GREETING_TIMEOUT: Duration = Duration::from_secs(10);
/// Length of the greeting of HTTP/2; before it no other limit of that protocol holds.
pub const GREETING_BYTES: usize = 24;
/// Connections without a certificate, together: nodes that join, each for a moment.
pub const STRANGERS_MAX: usize = 512;
/// A connection without a certificate ends after this long: a join asks once, for 10 s at most.
pub const STRANGER_LIFE: Duration = Duration::from_secs(30);
/// Pause after `accept` failed (no file descriptors left), before the next attempt.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// From dial to an established TCP connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Period of HTTP/2 pings on an otherwise silent client connection.
pub const KEEP_ALIVE_PERIOD: Duration = Duration::from_secs(5);
/// A ping without an answer for this long ends the connection.
pub const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// First pause after a failed renewal.
pub const RENEWAL_RETRY_FLOOR: Millis = Millis::from_secs(5);
/// Longest pause after failed renewals.
pub const RENEWAL_RETRY_CAP: Millis = Millis::from_secs(3_600);

/// Larger key or certificate files are not ours.
pub const KEY_FILE_BYTES_MAX: u64 = 1024 * 1024;
