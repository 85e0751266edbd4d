//! The audit log of an account: [`Client::audit_log`].

use reqwest::Method;
use tollkey_core::Timestamp;

pub use tollkey_api::audit::{AuditActor, AuditEntry, AuditTarget};

use crate::{
    Client, Moment, Page, Request,
    list::by_cursor,
    request::{Call, sends},
    url_text::UrlText,
};

/// The audit log: [`Client::audit_log`].
#[derive(Debug, Clone)]
pub struct AuditLog(pub(crate) Client);

impl AuditLog {
    /// `GET /audit-log`: the entries, newest first; at most 100 per page.
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client, key_id: &str) -> Result<(), tollkey_client::Error> {
    /// let mut log = management.audit_log().list().target_id(key_id).items();
    /// while let Some(entry) = log.next().await.transpose()? {
    ///     println!("{} {} by {}", entry.occurred_at, entry.action, entry.actor.id);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "listAuditLog")]
    pub fn list(&self) -> ListAuditLog {
        ListAuditLog {
            call: Call::new(&self.0, Method::GET, "/api/v1/audit-log", &[]).in_account(),
            limit: None,
            cursor: None,
            action: None,
            target_id: None,
            actor_id: None,
            since: None,
            until: None,
        }
    }
}

/// The list of entries: [`AuditLog::list`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct ListAuditLog {
    call: Call,
    limit: Option<u32>,
    cursor: Option<UrlText>,
    action: Option<UrlText>,
    target_id: Option<UrlText>,
    actor_id: Option<UrlText>,
    since: Option<Moment>,
    until: Option<Moment>,
}

impl ListAuditLog {
    /// The page size, 1 to 100; 100 when not set.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Only entries with this action, such as `api_key.revoked`.
    pub fn action(mut self, action: impl Into<String>) -> Self {
        self.action = Some(UrlText::new(action));
        self
    }

    /// Only entries whose target has this ID.
    pub fn target_id(mut self, id: impl Into<String>) -> Self {
        self.target_id = Some(UrlText::new(id));
        self
    }

    /// Only entries of this actor: the `sub` of a token, or the ID of a key.
    pub fn actor_id(mut self, id: impl Into<String>) -> Self {
        self.actor_id = Some(UrlText::new(id));
        self
    }

    /// Only entries at or after this time.
    pub fn since(mut self, at: impl Into<Moment>) -> Self {
        self.since = Some(at.into());
        self
    }

    /// Only entries before this time.
    pub fn until(mut self, at: impl Into<Moment>) -> Self {
        self.until = Some(at.into());
        self
    }

    fn request(self) -> Request<Page<AuditEntry>> {
        self.call
            .query("limit", self.limit)
            .query("cursor", self.cursor)
            .query("action", self.action)
            .query("target_id", self.target_id)
            .query("actor_id", self.actor_id)
            .query("since", self.since.map(Timestamp::from))
            .query("until", self.until.map(Timestamp::from))
            .reading_with(Page::read)
    }
}
sends!(ListAuditLog => Page<AuditEntry>);
by_cursor!(ListAuditLog: AuditEntry);
