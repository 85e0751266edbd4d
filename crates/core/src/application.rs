//! Applications: groups of keys, one for each integration of a merchant (kadosei).

use jiff::Timestamp;

use crate::{AccountId, ApplicationId, Invalid, text};

/// An application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    /// Its ID.
    pub id: ApplicationId,
    /// The account that it belongs to.
    pub account_id: AccountId,
    /// Its name, unique among the account's applications that are not deleted. Upper and lower case are different.
    pub name: String,
    /// Its description.
    pub description: Option<String>,
    /// Whether it is enabled. Otherwise all of its keys are denied as `application_disabled`.
    pub is_enabled: bool,
    /// When it was created.
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

    /// Reads a description: at most 500 characters after trimming. Returns `None` if it is absent or empty.
    ///
    /// # Errors
    /// [`Invalid`] otherwise.
    pub fn parse_description(description: Option<&str>) -> Result<Option<String>, Invalid> {
        text::optional(description, 500)
    }
}
