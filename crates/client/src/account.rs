//! The account surface ([`Client::account`]): secret and publishable keys (`sk_…`, `pk_…`) and an audit log.
//! Its callers present a secret key or a management token.

use reqwest::Method;
use serde::de::DeserializeOwned;
use tollkey_api::account::{self as api, Envelope, ListEnvelope};
use tollkey_core::{Mode, Timestamp, audit::TargetKind};

pub use tollkey_api::account::{
    Access, Actor, AuditEntry, CreatedKey, Extras, Key, RateLimit, Target,
};

use crate::{
    Client, Error, Moment, Page, Request,
    list::by_cursor,
    members::{idempotent, restrictions},
    request::{Call, Reply, sends},
    url_text::UrlText,
};

/// The account surface: [`Client::account`].
#[derive(Debug, Clone)]
pub struct Account(pub(crate) Client);

impl Account {
    /// The secret and publishable keys of the account.
    #[must_use]
    pub fn api_keys(&self) -> ApiKeys {
        ApiKeys(self.0.clone())
    }

    /// The audit log as this surface shows it. [`Client::audit_log`] has more filters.
    #[must_use]
    pub fn audit_log(&self) -> AuditLog {
        AuditLog(self.0.clone())
    }
}

/// The `data` of an envelope.
fn data<T: DeserializeOwned>(reply: Reply) -> Result<T, Error> {
    reply.json::<Envelope<T>>().map(|envelope| envelope.data)
}

/// The `data` of an envelope around a list.
fn page<T: DeserializeOwned>(reply: Reply) -> Result<Page<T>, Error> {
    reply
        .json::<ListEnvelope<T>>()
        .map(|envelope| Page::new(envelope.data, envelope.meta.next_cursor))
}

/// The secret and publishable keys of an account: [`Account::api_keys`].
#[derive(Debug, Clone)]
pub struct ApiKeys(Client);

impl ApiKeys {
    fn call(&self, method: Method, route: &'static str, segments: &[&str]) -> Call {
        Call::new(&self.0, method, route, segments).in_account()
    }

    /// `POST /account/api-keys`: creates a key. Its name has 1 to 100 characters. Only this response contains the
    /// full key. A secret key cannot create a key that has more access than itself.
    ///
    /// ```no_run
    /// # use tollkey_client::{Auth, Client, Mode, account::Access};
    /// # async fn example(tollkey: Client, secret_key: String) -> Result<(), tollkey_client::Error> {
    /// let account = tollkey.with_auth(Auth::key(secret_key)).account();
    /// let created = account.api_keys().create("Web shop", Mode::Live, Access::Publishable).await?;
    /// println!("{}", created.value.expose());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "createAccountKey")]
    pub fn create(&self, name: impl Into<String>, environment: Mode, access: Access) -> CreateKey {
        CreateKey {
            call: self
                .call(Method::POST, "/api/v1/account/api-keys", &[])
                .creating(),
            body: api::CreateKey {
                name: name.into(),
                environment: environment.into(),
                access: Some(access),
                expires_at: None,
                allowed_ips: None,
                rate_limit: None,
                metadata: None,
            },
        }
    }

    /// `GET /account/api-keys`: the keys, newest first, including revoked ones; at most 1000 per page.
    ///
    /// ```no_run
    /// # async fn example(key: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// for key in key.account().api_keys().list().await? {
    ///     println!("{} {}…{}", key.name, key.prefix, key.last4);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "listAccountKeys")]
    pub fn list(&self) -> ListKeys {
        ListKeys {
            call: self.call(Method::GET, "/api/v1/account/api-keys", &[]),
            limit: None,
            cursor: None,
        }
    }

    /// `POST /account/api-keys/{id}/revoke`: revokes a key permanently. When this returns, the key is rejected
    /// everywhere. Can be repeated.
    ///
    /// ```no_run
    /// # async fn example(key: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// let revoked = key.account().api_keys().revoke(id).await?;
    /// assert!(revoked.revoked_at.is_some());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "revokeAccountKey")]
    pub fn revoke(&self, key_id: impl AsRef<str>) -> Request<Key> {
        let id = [key_id.as_ref()];
        self.call(Method::POST, "/api/v1/account/api-keys/{id}/revoke", &id)
            .reading_with(data)
    }

    /// `DELETE /account/api-keys/{id}`: the same as [`revoke`](Self::revoke).
    ///
    /// ```no_run
    /// # async fn example(key: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// let revoked = key.account().api_keys().delete(id).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "deleteAccountKey")]
    pub fn delete(&self, key_id: impl AsRef<str>) -> Request<Key> {
        let id = [key_id.as_ref()];
        self.call(Method::DELETE, "/api/v1/account/api-keys/{id}", &id)
            .reading_with(data)
    }
}

/// Creates a secret or publishable key: [`ApiKeys::create`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct CreateKey {
    call: Call,
    body: api::CreateKey,
}

impl CreateKey {
    fn request(self) -> Request<CreatedKey> {
        self.call.json(&self.body).reading_with(data)
    }
}
restrictions!(CreateKey);
idempotent!(CreateKey);
sends!(CreateKey => CreatedKey);

/// The list of secret and publishable keys: [`ApiKeys::list`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct ListKeys {
    call: Call,
    limit: Option<u32>,
    cursor: Option<UrlText>,
}

impl ListKeys {
    /// The page size, 1 to 1000; 1000 when not set.
    pub fn limit(mut self, limit: u32) -> Self {
        self.limit = Some(limit);
        self
    }

    fn request(self) -> Request<Page<Key>> {
        self.call
            .query("limit", self.limit)
            .query("cursor", self.cursor)
            .reading_with(page)
    }
}
sends!(ListKeys => Page<Key>);
by_cursor!(ListKeys: Key);

/// The audit log as the account surface shows it: [`Account::audit_log`].
#[derive(Debug, Clone)]
pub struct AuditLog(Client);

impl AuditLog {
    /// `GET /account/audit-log`: the entries, newest first; at most 100 per page.
    ///
    /// ```no_run
    /// # async fn example(key: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let mut log = key.account().audit_log().list().action("api_key.revoked").items();
    /// while let Some(entry) = log.next().await.transpose()? {
    ///     println!("{} by {}", entry.target.id, entry.actor.id);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "listAccountAuditLog")]
    pub fn list(&self) -> ListAuditLog {
        let call = Call::new(&self.0, Method::GET, "/api/v1/account/audit-log", &[]).in_account();
        ListAuditLog {
            call,
            limit: None,
            cursor: None,
            action: None,
            entity_type: None,
            from: None,
            to: None,
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
    entity_type: Option<UrlText>,
    from: Option<Moment>,
    to: Option<Moment>,
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

    /// Only entries about a resource of this type.
    pub fn entity_type(mut self, kind: TargetKind) -> Self {
        self.entity_type = Some(UrlText::new(kind.as_str()));
        self
    }

    /// Only entries at or after this time.
    pub fn from(mut self, at: impl Into<Moment>) -> Self {
        self.from = Some(at.into());
        self
    }

    /// Only entries before this time.
    pub fn to(mut self, at: impl Into<Moment>) -> Self {
        self.to = Some(at.into());
        self
    }

    fn request(self) -> Request<Page<AuditEntry>> {
        let call = self
            .call
            .query("limit", self.limit)
            .query("cursor", self.cursor)
            .query("action", self.action)
            .query("entityType", self.entity_type)
            .query("from", self.from.map(Timestamp::from))
            .query("to", self.to.map(Timestamp::from));
        call.reading_with(page)
    }
}
sends!(ListAuditLog => Page<AuditEntry>);
by_cursor!(ListAuditLog: AuditEntry);
