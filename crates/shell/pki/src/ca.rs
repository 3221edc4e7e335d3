//! The cluster's certificate authority.
//!
//! Owns: making and reading the root, and signing node certificates.
//! Does not know: who may have a certificate; the caller has decided that.
//! Invariant: nothing of a signing request but its public key reaches a certificate.

use std::fmt::{self, Debug, Formatter};
use std::time::Duration;

use base::{Id, Millis, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;

use crate::identity::{self, Identity, IdentityError, Role};
use crate::key::{KeyError, NodeKey};
use crate::limits;
use crate::token::CaDigest;

/// A root certificate with its private key.
#[derive(Clone)]
pub struct RootCa {
    key: NodeKey,
    certificate: CertificateDer<'static>,
    not_after: Timestamp,
}

/// Whom a certificate is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject {
    pub node: Id,
    pub role: Role,
    pub cluster: Id,
}

/// A freshly signed certificate.
#[derive(Debug, Clone)]
pub struct Issued {
    /// The node's certificate, PEM; the root is not part of it.
    pub chain_pem: String,
    /// What it says.
    pub identity: Identity,
}

impl RootCa {
    /// A new root for a new cluster, valid for 20 years.
    ///
    /// # Errors
    /// When the system gives no entropy.
    pub fn generate(now: Timestamp) -> Result<Self, CaError> {
        let key = NodeKey::generate()?;
        let mut params = CertificateParams::default();
        set_validity(&mut params, now, now + limits::ROOT_EXPIRY);
        params.serial_number = Some(serial()?);
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "swarm-ca");
        // One step below the root is for a root that this one cross-signs during a rotation.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key.pair()?).map_err(CaError::Sign)?;
        Self::new(key, certificate.der().clone())
    }

    /// Reads a root back from what [`Self::certificate_pem`] and [`Self::key_pem`] gave.
    ///
    /// # Errors
    /// When either is damaged, they do not belong together or the certificate is no authority.
    pub fn from_pem(certificate_pem: &str, key_pem: &str) -> Result<Self, CaError> {
        let der = single_certificate(certificate_pem)?;
        let key = NodeKey::from_pem(key_pem)?;
        Self::new(key, der)
    }

    fn new(key: NodeKey, certificate: CertificateDer<'static>) -> Result<Self, CaError> {
        let parsed = identity::parse(&certificate)?;
        if !parsed.is_ca() {
            return Err(CaError::NotAnAuthority);
        }
        if parsed.public_key().subject_public_key.data.as_ref() != key.public() {
            return Err(CaError::KeyMismatch);
        }
        let not_after = identity::seconds(parsed.validity().not_after.timestamp());
        Ok(Self { key, certificate, not_after })
    }

    /// The root certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> String {
        to_pem(&self.certificate)
    }

    /// The root's private key, PKCS#8 PEM; a secret of the whole cluster.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        self.key.pem()
    }

    /// What join tokens pin.
    #[must_use]
    pub fn digest(&self) -> CaDigest {
        CaDigest::of(&self.certificate)
    }

    /// Last moment of the root's validity.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }

    /// Signs the public key of `request_pem` for `subject`. Valid from an hour before `now` to
    /// `expiry` after it, or to the root's own end when that comes first.
    ///
    /// # Errors
    /// When the request is damaged, not proven by its key, not P-256, or `expiry` is too short.
    pub fn issue(
        &self,
        request_pem: &str,
        subject: &Subject,
        expiry: Millis,
        now: Timestamp,
    ) -> Result<Issued, CaError> {
        if expiry < limits::CERTIFICATE_EXPIRY_MIN {
            return Err(CaError::ExpiryTooShort);
        }
        if request_pem.len() > limits::CSR_BYTES_MAX {
            let (bytes, max) = (request_pem.len(), limits::CSR_BYTES_MAX);
            return Err(CaError::RequestTooLarge { bytes, max });
        }
        let mut request =
            CertificateSigningRequestParams::from_pem(request_pem).map_err(CaError::Request)?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::RequestKey);
        }
        request.params = leaf_params(subject, (now + expiry).min(self.not_after), now)?;
        let issuer = self.issuer()?;
        let certificate = request.signed_by(&issuer).map_err(CaError::Sign)?;
        let identity = Identity::from_der(certificate.der())?;
        Ok(Issued { chain_pem: certificate.pem(), identity })
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, CaError> {
        Issuer::from_ca_cert_der(&self.certificate, self.key.pair()?).map_err(CaError::Sign)
    }
}

impl Debug for RootCa {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "RootCa({})", self.digest())
    }
}

/// The authority could not be made or read, or did not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The CA certificate text is not exactly one PEM certificate.
    #[error("CA certificate must be exactly one PEM certificate")]
    Pem,
    /// The certificate may not sign others.
    #[error("CA certificate is not a certificate authority")]
    NotAnAuthority,
    /// Key and certificate are of different pairs.
    #[error("CA key does not belong to the CA certificate")]
    KeyMismatch,
    /// The cluster's certificate expiry is too short to renew in time.
    #[error("certificate expiry must be at least 1h")]
    ExpiryTooShort,
    /// A signing request of that size is not one.
    #[error("certificate signing request must be at most {max} bytes, not {bytes}")]
    RequestTooLarge { bytes: usize, max: usize },
    /// The request is damaged or not signed by its own key: the node must make a new one.
    #[error("certificate signing request is not valid")]
    Request(#[source] rcgen::Error),
    /// Only P-256 keys are certified.
    #[error("certificate signing request must hold a P-256 key")]
    RequestKey,
    /// The system has no entropy to give.
    #[error("no certificate serial could be drawn")]
    Entropy,
    /// The provider refused to sign.
    #[error("certificate could not be signed")]
    Sign(#[source] rcgen::Error),
    /// A key could not be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate does not read back as one.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// All certificates of a PEM text; a block of another kind is refused.
pub(crate) fn certificates(pem_text: &str) -> Result<Vec<CertificateDer<'static>>, CaError> {
    let blocks = pem::parse_many(pem_text).map_err(|_| CaError::Pem)?;
    if blocks.len() > limits::CHAIN_CERTIFICATES_MAX
        || blocks.iter().any(|block| block.tag() != "CERTIFICATE")
    {
        return Err(CaError::Pem);
    }
    Ok(blocks.into_iter().map(|block| block.into_contents().into()).collect())
}

pub(crate) fn to_pem(certificate: &CertificateDer<'_>) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", certificate.as_ref()))
}

fn single_certificate(pem_text: &str) -> Result<CertificateDer<'static>, CaError> {
    let mut all = certificates(pem_text)?;
    match (all.pop(), all.is_empty()) {
        (Some(certificate), true) => Ok(certificate),
        _ => Err(CaError::Pem),
    }
}

/// Every field of a node certificate, decided here and nowhere else.
fn leaf_params(
    subject: &Subject,
    not_after: Timestamp,
    now: Timestamp,
) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    set_validity(&mut params, now, not_after);
    params.serial_number = Some(serial()?);
    params.distinguished_name = DistinguishedName::new();
    let name = &mut params.distinguished_name;
    name.push(DnType::OrganizationName, subject.cluster.to_string());
    name.push(DnType::OrganizationalUnitName, subject.role.unit());
    name.push(DnType::CommonName, subject.node.to_string());
    for dns in [subject.role.unit().to_owned(), subject.node.to_string()] {
        params.subject_alt_names.push(SanType::DnsName(dns.try_into().map_err(CaError::Sign)?));
    }
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// 127 random bits, positive and never zero.
fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = crate::token::random::<16>().ok_or(CaError::Entropy)?;
    bytes[0] = bytes[0] & 0x7F | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Certificates count in whole seconds and end within four-digit years.
fn set_validity(params: &mut CertificateParams, now: Timestamp, not_after: Timestamp) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let secs = |time: Timestamp| Duration::from_secs((time.0 / 1_000).min(LAST_SECOND));
    params.not_before = epoch + secs(now - limits::CERTIFICATE_BACKDATE);
    params.not_after = epoch + secs(not_after);
}

/// 9999-12-31T23:59:59Z.
const LAST_SECOND: u64 = 253_402_300_799;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(1_795_000_000_000);

    fn subject(role: Role) -> Subject {
        let id = |number| Id::from_u128(number).unwrap();
        Subject { node: id(7), role, cluster: id(9) }
    }

    fn issue(request: &str, expiry: Millis) -> Result<Issued, CaError> {
        RootCa::generate(NOW).unwrap().issue(request, &subject(Role::Worker), expiry, NOW)
    }

    #[test]
    fn a_certificate_says_what_the_authority_decided() {
        let root = RootCa::generate(NOW).unwrap();
        let request = NodeKey::generate().unwrap().request().unwrap();
        let day = Millis::from_secs(86_400);
        let issued = root.issue(&request, &subject(Role::Worker), day, NOW).unwrap();
        let found = &issued.identity;
        assert_eq!(
            (found.node, found.cluster),
            (subject(Role::Worker).node, subject(Role::Worker).cluster)
        );
        assert_eq!(found.role, Role::Worker);
        assert_eq!(found.not_before, NOW - limits::CERTIFICATE_BACKDATE);
        assert_eq!(found.not_after, NOW + day);
        let again = root.issue(&request, &subject(Role::Worker), day, NOW).unwrap();
        assert_ne!(found.serial, again.identity.serial);
    }

    #[test]
    fn a_request_gets_nothing_it_asks_for() {
        let mut greedy = CertificateParams::new(vec!["swarm-manager".to_owned()]).unwrap();
        greedy.distinguished_name.push(DnType::OrganizationalUnitName, "swarm-manager");
        greedy.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        greedy.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        greedy.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        let pair = NodeKey::generate().unwrap().pair().unwrap();
        let request = greedy.serialize_request(&pair).unwrap().pem().unwrap();
        let issued = issue(&request, limits::CERTIFICATE_EXPIRY_DEFAULT).unwrap();
        let der = certificates(&issued.chain_pem).unwrap().remove(0);
        let parsed = identity::parse(&der).unwrap();
        assert!(!parsed.is_ca());
        assert_eq!(issued.identity.role, Role::Worker);
        let usage = parsed.extended_key_usage().unwrap().unwrap().value;
        assert!(usage.client_auth && usage.server_auth && !usage.code_signing);
        assert!(!parsed.key_usage().unwrap().unwrap().value.key_cert_sign());
        let names = &parsed.subject_alternative_name().unwrap().unwrap().value.general_names;
        assert!(!format!("{names:?}").contains("swarm-manager"), "{names:?}");
    }

    #[test]
    fn bad_requests_are_refused_with_the_reason() {
        let good = NodeKey::generate().unwrap().request().unwrap();
        let long = Millis::from_secs(7_200);
        let tampered = {
            let block = pem::parse(&good).unwrap();
            let mut der = block.contents().to_vec();
            let middle = der.len() / 3;
            der[middle] ^= 1;
            pem::encode(&pem::Pem::new(block.tag(), der))
        };
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let other = CertificateParams::default().serialize_request(&ed25519).unwrap();
        for (request, expiry, text) in [
            (good.clone(), Millis::from_secs(3_599), "at least 1h"),
            (String::new(), long, "signing request is not valid"),
            (tampered, long, "signing request is not valid"),
            (other.pem().unwrap(), long, "must hold a P-256 key"),
            ("x".repeat(20_000), long, "at most 16384 bytes"),
        ] {
            let error = issue(&request, expiry).unwrap_err().to_string();
            assert!(error.contains(text), "{text}: {error}");
        }
    }

    #[test]
    fn a_certificate_never_outlives_its_root() {
        let root = RootCa::generate(NOW).unwrap();
        let request = NodeKey::generate().unwrap().request().unwrap();
        let late = root.not_after() - Millis::from_secs(7_200);
        let expiry = limits::CERTIFICATE_EXPIRY_DEFAULT;
        let issued = root.issue(&request, &subject(Role::Manager), expiry, late).unwrap();
        assert_eq!(issued.identity.not_after, root.not_after());
    }

    #[test]
    fn a_root_comes_back_and_mixed_up_parts_are_refused() {
        let (a, b) = (RootCa::generate(NOW).unwrap(), RootCa::generate(NOW).unwrap());
        let back = RootCa::from_pem(&a.certificate_pem(), a.key_pem()).unwrap();
        assert_eq!(back.digest(), a.digest());
        assert_ne!(a.digest(), b.digest());
        let mixed = RootCa::from_pem(&a.certificate_pem(), b.key_pem()).unwrap_err();
        assert!(matches!(mixed, CaError::KeyMismatch), "{mixed}");
        let key = NodeKey::generate().unwrap();
        let expiry = limits::CERTIFICATE_EXPIRY_DEFAULT;
        let leaf = a.issue(&key.request().unwrap(), &subject(Role::Manager), expiry, NOW);
        let no_ca = RootCa::from_pem(&leaf.unwrap().chain_pem, key.pem()).unwrap_err();
        assert!(matches!(no_ca, CaError::NotAnAuthority), "{no_ca}");
        assert!(!format!("{a:?}").contains("KEY"));
    }
}
