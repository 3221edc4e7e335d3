//! Identity of nodes: certificate authority, join tokens, certificates, TLS and keys at rest.
//!
//! Owns: who a peer is, how that is proven on a connection, and the key files on disk.
//! Does not know: what a role may do beyond its name, the store, the services on a connection.
//! Invariant: a private key or a token's secret never appears in `Debug`, a log or an error.

pub mod accept;
pub mod authorize;
pub mod base36;
pub mod ca;
pub mod connect;
pub mod data_key;
pub mod divert;
pub mod files;
pub mod identity;
pub mod key;
pub mod limits;
mod patience;
pub mod pin;
pub mod renewal;
pub mod tls;
pub mod token;
mod verify;

pub use accept::{Incoming, PeerInfo, TlsConn, accept_stream};
pub use authorize::{Roles, peer_identity, peer_info, require};
pub use ca::{CaError, Issued, RootCa, Subject};
pub use connect::{Connector, Expected, channel, connector, connector_for};
pub use data_key::{DataKey, DataKeyError};
pub use divert::{Divert, Diverted, diverted_stream};
pub use files::{FilesError, IdentityFiles, write_atomic};
pub use identity::{Identity, IdentityError, Role, wall_now};
pub use key::{KeyError, NodeKey};
pub use pin::{PinError, Pinned};
pub use renewal::{renew_at, retry_after};
pub use tls::{NodeTls, TlsError};
pub use token::{CaDigest, JoinToken, TokenError, TokenSecret};
