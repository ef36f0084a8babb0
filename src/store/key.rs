//! The name of a candidate in a store.

use std::fmt;
use std::str::FromStr;

use crate::sampling::CandidateKey;

/// The BLAKE3 hash of a [`CandidateKey`]: known before the candidate is generated, and the same in every cell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// Wraps 32 bytes, as read from a store.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<&CandidateKey<'_>> for Key {
    fn from(key: &CandidateKey) -> Self {
        Self(key.hash())
    }
}

impl fmt::Display for Key {
    /// 64 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

impl FromStr for Key {
    type Err = String;

    /// Reads 64 hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, String> {
        blake3::Hash::from_hex(text).map(|hash| Self(*hash.as_bytes())).map_err(|error| {
            format!("{text:?} is no candidate key (64 hexadecimal digits): {error}")
        })
    }
}
