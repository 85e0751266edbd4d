//! Service keys: what resource servers and gateways present to verify the keys of others. They are no API keys;
//! verification calls them unknown.

use jiff::Timestamp;

use crate::{Invalid, ServiceKeyId, text};

/// A service key, without its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceKey {
    /// Its id.
    pub id: ServiceKeyId,
    /// What it is for.
    pub name: String,
    /// The last four characters.
    pub last4: String,
    /// When it was made.
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
