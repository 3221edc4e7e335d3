//! One identity type per noun, so that a task cannot be passed for a node.
//!
//! Owns: the typed identities. Invariant: each is exactly a [`base::Id`], same text, same bytes.

use std::fmt::{self, Debug, Display, Formatter};
use std::str::FromStr;

use base::{Id, ParseIdError};

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub Id);

        impl $name {
            /// The smallest and the largest identity: the ends of a range of keys.
            pub const MIN: Self = Self(match Id::from_u128(1) {
                Some(id) => id,
                None => panic!("one is not zero"),
            });
            pub const MAX: Self = Self(match Id::from_u128(u128::MAX) {
                Some(id) => id,
                None => panic!("the largest number is not zero"),
            });

            #[must_use]
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0.to_bytes()
            }

            #[must_use]
            pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
                Id::from_bytes(bytes).map(Self)
            }
        }

        impl Display for $name {
            fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
                Display::fmt(&self.0, f)
            }
        }

        impl Debug for $name {
            fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
                Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                text.parse().map(Self)
            }
        }

        impl From<Id> for $name {
            fn from(id: Id) -> Self {
                Self(id)
            }
        }
    };
}

typed_id!(/// Identity of the cluster.
    ClusterId);
typed_id!(/// Identity of a node; also the common name of its certificate.
    NodeId);
typed_id!(/// Identity of a service.
    ServiceId);
typed_id!(/// Identity of a task; also of its container.
    TaskId);
typed_id!(/// Identity of a network.
    NetworkId);

impl NetworkId {
    /// The predefined networks that every node has: the host's own, none at all, and the node's
    /// default bridge. They are no objects of the store.
    pub const HOST: Self = Self::predefined(1);
    pub const NONE: Self = Self::predefined(2);
    pub const BRIDGE: Self = Self::predefined(3);

    const fn predefined(number: u128) -> Self {
        match Id::from_u128(number) {
            Some(id) => Self(id),
            None => panic!("the number is not zero"),
        }
    }

    /// `host`, `none` or `bridge`.
    #[must_use]
    pub fn from_predefined_name(name: &str) -> Option<Self> {
        match name {
            "host" => Some(Self::HOST),
            "none" => Some(Self::NONE),
            "bridge" => Some(Self::BRIDGE),
            _ => None,
        }
    }

    #[must_use]
    pub fn is_predefined(self) -> bool {
        [Self::HOST, Self::NONE, Self::BRIDGE].contains(&self)
    }
}
