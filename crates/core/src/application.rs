//! Applications: groups of keys, one for each integration of a merchant (kadosei).

use jiff::Timestamp;

use crate::{AccountId, ApplicationId, Invalid, text};

/// An application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    /// Its id.
    pub id: ApplicationId,
    /// Whose it is.
    pub account_id: AccountId,
    /// Unique per account, case-sensitively, among those not deleted.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// While this is false, all its keys are denied as `application_disabled`.
    pub is_enabled: bool,
    /// When it was made.
    pub created_at: Timestamp,
}

impl Application {
    /// Reads a name: 1 to 100 characters after trimming.
    ///
    /// # Errors
    /// [`Invalid`] otherwise.
    pub fn parse_name(name: &str) -> Result<String, Invalid> {
        text::required(name, 100)
    }

    /// Reads a description: at most 500 characters; none when absent or empty.
    ///
    /// # Errors
    /// [`Invalid`] otherwise.
    pub fn parse_description(description: Option<&str>) -> Result<Option<String>, Invalid> {
        text::optional(description, 500)
    }
}
