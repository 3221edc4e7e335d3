//! The client of a node that has a join token and no certificate.
//!
//! Owns: the check of the manager's root against the token, and the root found that way.
//! Does not know: what is sent over the connection.
//! Invariant: not one byte of the secret is sent before the root's digest has been matched.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::ClientConfig;
use rustls::client::Resumption;
use rustls_pki_types::CertificateDer;

use crate::ca;
use crate::connect::Connector;
use crate::tls::{PROTOCOL_HTTP, TlsError};
use crate::token::CaDigest;
use crate::verify::{PeerMismatch, PinCheck, provider};

/// Dials managers that chain up to one pinned root, showing no certificate.
#[derive(Debug, Clone)]
pub struct Pinned {
    pin: Arc<Pin>,
    config: Arc<ClientConfig>,
}

impl Pinned {
    /// For the digest of a join token.
    ///
    /// # Errors
    /// Only when the provider lacks TLS 1.3, which a build decides.
    pub fn new(digest: CaDigest) -> Result<Self, TlsError> {
        let pin = Arc::new(Pin { digest, outcome: Mutex::new(None) });
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(TlsError::Provider)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(PinCheck { pin: Arc::clone(&pin) }))
            .with_no_client_auth();
        config.alpn_protocols = vec![PROTOCOL_HTTP.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self { pin, config: Arc::new(config) })
    }

    /// For `Endpoint::connect_with_connector_lazy`; see [`crate::channel`].
    #[must_use]
    pub fn connector(&self) -> Connector {
        Connector::from_config(Arc::clone(&self.config))
    }

    /// The root of the cluster, PEM, once a handshake was done.
    ///
    /// # Errors
    /// When there was none yet, or why the last one was refused.
    pub fn root_pem(&self) -> Result<String, PinError> {
        let outcome = self.pin.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome.as_ref() {
            None => Err(PinError::NoHandshake),
            Some(Err(mismatch)) => Err(PinError::Refused(mismatch.clone())),
            Some(Ok(root)) => Ok(ca::to_pem(root)),
        }
    }
}

/// The manager's root is not known.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PinError {
    /// No manager was reached: address, port or network are wrong.
    #[error("no manager has answered with a certificate yet")]
    NoHandshake,
    /// A manager was reached and is not one of the token's cluster.
    #[error(transparent)]
    Refused(#[from] PeerMismatch),
}

/// What is looked for, and what the last handshake found.
#[derive(Debug)]
pub(crate) struct Pin {
    digest: CaDigest,
    outcome: Mutex<Option<Result<CertificateDer<'static>, PeerMismatch>>>,
}

impl Pin {
    pub(crate) fn digest(&self) -> CaDigest {
        self.digest
    }

    pub(crate) fn record(&self, outcome: Result<CertificateDer<'static>, PeerMismatch>) {
        *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
    }
}
