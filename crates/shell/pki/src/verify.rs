//! Verifiers of peers, over trust that may be replaced while connections are open.
//!
//! Owns: chain, name, role, cluster and node checks of a handshake.
//! Does not know: which certificate this node shows, what a role may do.
//! Invariant: nothing is accepted that webpki refuses; the checks here only take away.

use std::sync::Arc;

use base::Id;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::{Identity, IdentityError, Role};
use crate::pin::Pin;
use crate::tls::NodeTls;
use crate::token::CaDigest;

/// The roots a node believes, with the verifiers made from them.
#[derive(Debug)]
pub(crate) struct Trust {
    server: Arc<WebPkiServerVerifier>,
    client: Arc<dyn ClientCertVerifier>,
}

impl Trust {
    /// `None` when there is no usable root among `roots`.
    pub(crate) fn new(roots: &[CertificateDer<'static>]) -> Option<Self> {
        let mut store = RootCertStore::empty();
        for root in roots {
            store.add(root.clone()).ok()?;
        }
        let (store, provider) = (Arc::new(store), provider());
        let server =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&store), provider.clone());
        let client = WebPkiClientVerifier::builder_with_provider(store, provider);
        Some(Self { server: server.build().ok()?, client: client.build().ok()? })
    }

    fn check_server(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Identity, Error> {
        let name = ServerName::try_from(Role::Manager.unit())
            .map_err(|_| Error::General("server name".to_owned()))?;
        self.server.verify_server_cert(leaf, chain, &name, &[], now)?;
        identity(leaf)
    }
}

/// What the peer must be, beyond a member of the cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Expected {
    /// The node it must be; `None` where only the address is known.
    pub node: Option<Id>,
}

/// A server that must be a manager of this node's cluster.
#[derive(Debug)]
pub(crate) struct ServerCheck {
    pub(crate) tls: Arc<NodeTls>,
    pub(crate) expected: Expected,
}

impl ServerCertVerifier for ServerCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let found = self.tls.trust().check_server(end_entity, intermediates, now)?;
        let own = self.tls.identity();
        if found.role != Role::Manager {
            return Err(refuse(PeerMismatch::Role(found.role)));
        }
        if found.cluster != own.cluster {
            return Err(refuse(PeerMismatch::Cluster(found.cluster)));
        }
        match self.expected.node {
            Some(expected) if expected != found.node => {
                Err(refuse(PeerMismatch::Node { expected, found: found.node }))
            }
            _ => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// A client that shows no certificate, or one of this node's cluster.
#[derive(Debug)]
pub(crate) struct ClientCheck {
    pub(crate) tls: Arc<NodeTls>,
}

impl ClientCertVerifier for ClientCheck {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified =
            self.tls.trust().client.verify_client_cert(end_entity, intermediates, now)?;
        let found = identity(end_entity)?;
        if found.cluster != self.tls.identity().cluster {
            return Err(refuse(PeerMismatch::Cluster(found.cluster)));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// A manager whose root has the digest of a join token. What was found is left in `pin`.
#[derive(Debug)]
pub(crate) struct PinCheck {
    pub(crate) pin: Arc<Pin>,
}

impl PinCheck {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<CertificateDer<'static>, PeerMismatch> {
        let pinned = |root: &&CertificateDer<'_>| CaDigest::of(root) == self.pin.digest();
        let root = chain.iter().find(pinned).ok_or(PeerMismatch::Digest)?;
        let root = root.clone().into_owned();
        let trust = Trust::new(std::slice::from_ref(&root)).ok_or(PeerMismatch::Root)?;
        let found = trust.check_server(leaf, chain, now).map_err(PeerMismatch::Chain)?;
        if found.role != Role::Manager {
            return Err(PeerMismatch::Role(found.role));
        }
        Ok(root)
    }
}

impl ServerCertVerifier for PinCheck {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let outcome = self.check(end_entity, intermediates, now);
        let answer = match &outcome {
            Ok(_) => Ok(ServerCertVerified::assertion()),
            Err(mismatch) => Err(refuse(mismatch.clone())),
        };
        self.pin.record(outcome);
        answer
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(only_tls13())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// The peer has a good certificate and is not whom this node wants to talk to.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PeerMismatch {
    /// A worker answered where a manager was expected.
    #[error("peer must be a manager, its certificate says {0}")]
    Role(Role),
    /// The address belongs to another cluster.
    #[error("peer belongs to another cluster, {0}")]
    Cluster(Id),
    /// The address belongs to another node by now.
    #[error("peer must be node {expected}, its certificate says {found}")]
    Node { expected: Id, found: Id },
    /// The token is of another cluster, or somebody is in between.
    #[error("--token: the CA of the cluster at this address is not the one of the token")]
    Digest,
    /// The pinned certificate is no root.
    #[error("the CA certificate of the cluster cannot be used as a root")]
    Root,
    /// The manager's own certificate does not follow from the pinned root, or has expired.
    #[error("the manager's certificate is refused")]
    Chain(#[source] Error),
}

/// The one cryptography provider of the program.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::ring::default_provider().signature_verification_algorithms
}

fn identity(leaf: &CertificateDer<'_>) -> Result<Identity, Error> {
    Identity::from_der(leaf).map_err(|error: IdentityError| {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
    })
}

fn refuse(mismatch: PeerMismatch) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(mismatch))))
}

fn only_tls13() -> Error {
    Error::PeerIncompatible(rustls::PeerIncompatible::Tls12NotOffered)
}
