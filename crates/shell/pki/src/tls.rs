//! A node's TLS identity and trust, replaceable while connections are open.
//!
//! Owns: the certificate shown to peers and the roots believed, for clients and servers alike.
//! Does not know: sockets, gRPC, who is connected.
//! Invariant: each handshake uses one certificate and one trust, the newest; open connections
//! keep what they began with, and nothing (ticket, session) lets an old identity return.

use std::fmt::{self, Debug, Formatter};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::ca::{self, CaError};
use crate::identity::{Identity, IdentityError};
use crate::key::NodeKey;
use crate::verify::{ClientCheck, Expected, ServerCheck, Trust, provider};

/// Certificate and trust of this node.
pub struct NodeTls {
    own: ArcSwap<Own>,
    trust: ArcSwap<Trust>,
}

struct Own {
    identity: Identity,
    /// Shown to servers: the chain alone.
    client: Arc<CertifiedKey>,
    /// Shown to clients: with the roots, of which a joining node looks for the pinned one.
    server: Arc<CertifiedKey>,
}

impl NodeTls {
    /// From the PEM texts that [`crate::IdentityFiles`] keeps.
    ///
    /// # Errors
    /// When a text is damaged, or key, certificate and roots do not belong together.
    pub fn new(key: &NodeKey, chain_pem: &str, roots_pem: &str) -> Result<Arc<Self>, TlsError> {
        let (own, trust) = load(key, chain_pem, roots_pem)?;
        Ok(Arc::new(Self { own: ArcSwap::from_pointee(own), trust: ArcSwap::from_pointee(trust) }))
    }

    /// Shows and believes something else from the next handshake on. Nothing is changed when the
    /// new material is refused.
    ///
    /// # Errors
    /// As [`Self::new`]; and when node or cluster would change.
    pub fn replace(&self, key: &NodeKey, chain_pem: &str, roots_pem: &str) -> Result<(), TlsError> {
        let (own, trust) = load(key, chain_pem, roots_pem)?;
        let before = self.identity();
        if (own.identity.node, own.identity.cluster) != (before.node, before.cluster) {
            return Err(TlsError::OtherNode);
        }
        // New trust first: a peer that has renewed already is then believed either way.
        self.trust.store(Arc::new(trust));
        self.own.store(Arc::new(own));
        Ok(())
    }

    /// Who this node is by its newest certificate.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.own.load().identity.clone()
    }

    /// For the listening side, speaking `protocol` (ALPN). Clients may come without a
    /// certificate: see [`crate::require`].
    ///
    /// # Errors
    /// Only when the provider lacks TLS 1.3, which a build decides.
    pub fn server_config(self: &Arc<Self>, protocol: &[u8]) -> Result<Arc<ServerConfig>, TlsError> {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Provider)?
            .with_client_cert_verifier(Arc::new(ClientCheck { tls: Arc::clone(self) }))
            .with_cert_resolver(Arc::new(Shown(Arc::clone(self))));
        config.alpn_protocols = vec![protocol.to_vec()];
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    /// For the dialling side, speaking `protocol` (ALPN), which shows this node's certificate.
    ///
    /// # Errors
    /// Only when the provider lacks TLS 1.3, which a build decides.
    pub fn client_config(
        self: &Arc<Self>,
        expected: Expected,
        protocol: &[u8],
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let check = ServerCheck { tls: Arc::clone(self), expected };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Provider)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(check))
            .with_client_cert_resolver(Arc::new(Shown(Arc::clone(self))));
        config.alpn_protocols = vec![protocol.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Arc::new(config))
    }

    pub(crate) fn trust(&self) -> Arc<Trust> {
        self.trust.load_full()
    }
}

impl Debug for NodeTls {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let identity = self.identity();
        write!(f, "NodeTls({} {})", identity.role, identity.node)
    }
}

/// The TLS identity could not be made or replaced.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The chain has no certificate.
    #[error("certificate chain is empty")]
    EmptyChain,
    /// No root, or one that cannot be a trust anchor.
    #[error("CA certificate must hold at least one root and only roots")]
    Roots,
    /// The private key is of another certificate.
    #[error("private key does not belong to the certificate")]
    KeyMismatch(#[source] rustls::Error),
    /// The key is damaged.
    #[error("private key must be a P-256 key in PKCS#8 PEM")]
    Key,
    /// A replacement for another node or cluster would change who this node is.
    #[error("a renewed certificate must keep node and cluster")]
    OtherNode,
    /// The build lacks TLS 1.3.
    #[error("tls provider has no TLS 1.3")]
    Provider(#[source] rustls::Error),
    /// A PEM text is damaged.
    #[error(transparent)]
    Pem(#[from] CaError),
    /// The certificate is not a node's.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// The answer to "which certificate", read anew for each handshake.
#[derive(Debug)]
struct Shown(Arc<NodeTls>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.own.load().server))
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.own.load().client))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// What ordinary connections speak.
pub const PROTOCOL_HTTP: &[u8] = b"h2";

fn load(key: &NodeKey, chain_pem: &str, roots_pem: &str) -> Result<(Own, Trust), TlsError> {
    let chain = ca::certificates(chain_pem)?;
    let roots = ca::certificates(roots_pem)?;
    let identity = Identity::from_der(chain.first().ok_or(TlsError::EmptyChain)?)?;
    if roots.is_empty() {
        return Err(TlsError::Roots);
    }
    let trust = Trust::new(&roots).ok_or(TlsError::Roots)?;
    let mut with_roots = chain.clone();
    with_roots.extend(roots.into_iter().filter(|root| !chain.contains(root)));
    let own = Own { identity, client: certified(chain, key)?, server: certified(with_roots, key)? };
    Ok((own, trust))
}

fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: &NodeKey,
) -> Result<Arc<CertifiedKey>, TlsError> {
    let der = PrivateKeyDer::from_pem_slice(key.pem().as_bytes()).map_err(|_| TlsError::Key)?;
    CertifiedKey::from_der(chain, der, &provider()).map(Arc::new).map_err(TlsError::KeyMismatch)
}
