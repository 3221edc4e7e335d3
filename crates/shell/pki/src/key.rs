//! A node's private key, and the signing request made from it.
//!
//! Owns: the P-256 key in PKCS#8 PEM. Does not know: where it is stored, who signs for it.
//! Invariant: the key text is wiped when dropped and is not in `Debug`.

use std::fmt::{self, Debug, Formatter};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PublicKeyData};
use zeroize::Zeroizing;

/// A private key, kept as text and parsed for each use: uses are rare.
#[derive(Clone)]
pub struct NodeKey {
    pem: Zeroizing<String>,
    public: Vec<u8>,
}

impl NodeKey {
    /// A fresh key from the operating system's entropy.
    ///
    /// # Errors
    /// When the operating system gives no entropy.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(KeyError::Generate)?;
        Ok(Self::from_pair(&pair))
    }

    /// Reads PKCS#8 PEM.
    ///
    /// # Errors
    /// When the text is not a P-256 key.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let pair = KeyPair::from_pkcs8_pem_and_sign_algo(pem, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| KeyError::Parse)?;
        Ok(Self::from_pair(&pair))
    }

    /// PKCS#8 PEM; a secret.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The uncompressed public point, as it stands in a certificate.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.public
    }

    /// A signing request for this key. It asks for nothing: the authority decides every field.
    ///
    /// # Errors
    /// When signing fails, which only a broken provider does.
    pub fn request(&self) -> Result<String, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let request = params.serialize_request(&self.pair()?).map_err(KeyError::Request)?;
        request.pem().map_err(KeyError::Request)
    }

    pub(crate) fn pair(&self) -> Result<KeyPair, KeyError> {
        KeyPair::from_pkcs8_pem_and_sign_algo(&self.pem, &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| KeyError::Parse)
    }

    fn from_pair(pair: &KeyPair) -> Self {
        let public = pair.der_bytes().to_vec();
        Self { pem: Zeroizing::new(pair.serialize_pem()), public }
    }
}

impl Debug for NodeKey {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("NodeKey(redacted)")
    }
}

/// A key could not be made, read or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The system has no entropy to give.
    #[error("no private key could be generated")]
    Generate(#[source] rcgen::Error),
    /// The text is damaged or of another kind. The source is left out: it could quote the key.
    #[error("private key must be a P-256 key in PKCS#8 PEM")]
    Parse,
    /// The request could not be written.
    #[error("no certificate signing request could be made")]
    Request(#[source] rcgen::Error),
}
