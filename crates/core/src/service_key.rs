//! Service keys, which resource servers and gateways present to verify API keys. They are not API keys: verification
//! denies them as unknown.

use jiff::Timestamp;

use crate::{Invalid, ServiceKeyId, text};

/// A stored service key, without the full key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceKey {
    /// Its ID.
    pub id: ServiceKeyId,
    /// Its label.
    pub name: String,
    /// The last four characters of the full key.
    pub last4: String,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was revoked, if it was.
    pub revoked_at: Option<Timestamp>,
}

impl ServiceKey {
    /// Reads a name: 1 to 100 characters after trimming.
    ///
    /// # Errors
    /// [`Invalid`] otherwise.
    pub fn parse_name(name: &str) -> Result<String, Invalid> {
        text::required(name, 100)
    }
}
