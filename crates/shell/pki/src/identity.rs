//! Who a certificate says its holder is.
//!
//! Owns: the role, and the reading of node, role and cluster out of a certificate's subject.
//! Does not know: whether the certificate is trusted; the verifiers have answered that before.
//! Invariant: an identity is complete: a subject with a part missing or doubled is refused.

use std::fmt::{self, Display, Formatter};
use std::str::FromStr;
use std::time::SystemTime;

use base::{Id, Millis, Timestamp};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

/// What a node may be, as the organisational unit of its certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    Manager,
    Worker,
}

impl Role {
    /// The organisational unit that stands for this role.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Manager => "swarm-manager",
            Self::Worker => "swarm-worker",
        }
    }
}

impl Display for Role {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Manager => "manager",
            Self::Worker => "worker",
        })
    }
}

impl FromStr for Role {
    type Err = IdentityError;

    /// Reads the organisational unit.
    fn from_str(unit: &str) -> Result<Self, IdentityError> {
        match unit {
            "swarm-manager" => Ok(Self::Manager),
            "swarm-worker" => Ok(Self::Worker),
            other => Err(IdentityError::Role(other.to_owned())),
        }
    }
}

/// A node as its certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Subject CN.
    pub node: Id,
    /// Subject OU.
    pub role: Role,
    /// Subject O.
    pub cluster: Id,
    /// Serial number, lower-case hexadecimal.
    pub serial: String,
    /// First moment of validity.
    pub not_before: Timestamp,
    /// Last moment of validity.
    pub not_after: Timestamp,
}

impl Identity {
    /// Reads the identity out of one DER certificate.
    ///
    /// # Errors
    /// When it is no certificate, or its subject is not that of a node.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let certificate = parse(der)?;
        let subject = certificate.subject();
        let unit = single(subject, "OU", X509Name::iter_organizational_unit)?;
        Ok(Self {
            node: id(single(subject, "CN", X509Name::iter_common_name)?, "CN")?,
            role: unit.parse()?,
            cluster: id(single(subject, "O", X509Name::iter_organization)?, "O")?,
            serial: hex(certificate.raw_serial()),
            not_before: seconds(certificate.validity().not_before.timestamp()),
            not_after: seconds(certificate.validity().not_after.timestamp()),
        })
    }

    /// Whether `now` lies outside the certificate's validity.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now < self.not_before || now > self.not_after + Millis(999)
    }
}

/// The certificate does not name a node of a cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are not one X.509 certificate: the file or the peer is damaged.
    #[error("not an x509 certificate")]
    Certificate,
    /// A part of the subject is missing or stands there twice.
    #[error("certificate subject must have exactly one {0}")]
    Subject(&'static str),
    /// CN or O is not an identity.
    #[error("certificate subject {field} must be an id of 25 characters, not {text:?}")]
    Id { field: &'static str, text: String },
    /// OU is neither `swarm-manager` nor `swarm-worker`.
    #[error("certificate subject OU must be swarm-manager or swarm-worker, not {0:?}")]
    Role(String),
}

/// The machine's wall clock, for whoever wires a time argument of this crate.
#[must_use]
pub fn wall_now() -> Timestamp {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Timestamp(Millis::from_duration(since_epoch.unwrap_or_default()).0)
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) | Err(_) => Err(IdentityError::Certificate),
    }
}

pub(crate) fn seconds(since_epoch: i64) -> Timestamp {
    Timestamp(u64::try_from(since_epoch).unwrap_or(0).saturating_mul(1_000))
}

fn single<'a, I>(
    subject: &'a X509Name<'a>,
    field: &'static str,
    values: impl Fn(&'a X509Name<'a>) -> I,
) -> Result<&'a str, IdentityError>
where
    I: Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
{
    let mut values = values(subject);
    match (values.next(), values.next()) {
        (Some(value), None) => value.as_str().map_err(|_| IdentityError::Subject(field)),
        _ => Err(IdentityError::Subject(field)),
    }
}

fn id(text: &str, field: &'static str) -> Result<Id, IdentityError> {
    text.parse().map_err(|_| {
        let text = text.chars().take(64).collect();
        IdentityError::Id { field, text }
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
