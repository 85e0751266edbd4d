//! Commerce keys (`ck_…`): [`Client::commerce`].

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use tollkey_api::{
    Patch,
    commerce::{self as api, UpdateRateLimit},
};
use tollkey_core::{Mode, Scope, feature::Feature};

pub use tollkey_api::commerce::{CreatedKey, Key, KeyScope, Message, RateLimit};

use crate::{
    Client, Moment, Page, Request,
    list::by_cursor,
    members::{idempotent, object, restrictions, seconds, texts},
    request::{Call, sends},
    retry::Repeat,
    url_text::UrlText,
};

/// The commerce surface: [`Client::commerce`].
#[derive(Debug, Clone)]
pub struct Commerce(pub(crate) Client);

impl Commerce {
    /// The commerce keys of the account.
    #[must_use]
    pub fn api_keys(&self) -> ApiKeys {
        ApiKeys(self.0.clone())
    }
}

/// The commerce keys of an account: [`Commerce::api_keys`].
#[derive(Debug, Clone)]
pub struct ApiKeys(Client);

impl ApiKeys {
    fn call(&self, method: Method, route: &'static str, segments: &[&str]) -> Call {
        Call::new(&self.0, method, route, segments).in_account()
    }

    fn post(&self, route: &'static str, key_id: &str) -> Call {
        self.call(Method::POST, route, &[key_id])
    }

    /// `POST /api-keys`: creates a key. Its name has 1 to 255 characters. Only this response contains the full key.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # use tollkey_client::{Mode, Scope};
    /// # async fn example(management: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let created = management
    ///     .commerce()
    ///     .api_keys()
    ///     .create("Commerce Server Key")
    ///     .mode(Mode::Test)
    ///     .scopes([Scope::LINKS_READ, Scope::SESSIONS_WRITE])
    ///     .allowed_ips(["203.0.113.0/24"])
    ///     .rate_limit(100, Duration::from_secs(60))
    ///     .await?;
    /// println!("{}", created.api_key.expose());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "createCommerceKey")]
    pub fn create(&self, name: impl Into<String>) -> CreateKey {
        CreateKey {
            call: self.call(Method::POST, "/api/v1/api-keys", &[]).creating(),
            body: api::CreateKey {
                name: name.into(),
                scope: Some(KeyScope::Commerce),
                ..api::CreateKey::default()
            },
        }
    }

    /// `GET /api-keys`: the keys, newest first, including revoked ones; at most 1000 per page.
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// for key in management.commerce().api_keys().list().await? {
    ///     println!("{}… {} {}", key.prefix, key.name, key.status);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "listCommerceKeys")]
    pub fn list(&self) -> ListKeys {
        let call = self
            .call(Method::GET, "/api/v1/api-keys", &[])
            .query("scope", Some(KeyScope::Commerce));
        ListKeys {
            call,
            limit: None,
            cursor: None,
        }
    }

    /// `GET /api-keys/{id}`: one key.
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// let key = management.commerce().api_keys().get(id).await?;
    /// println!("last used: {:?}", key.last_used_at);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "getCommerceKey")]
    pub fn get(&self, key_id: impl AsRef<str>) -> Request<Key> {
        self.call(Method::GET, "/api/v1/api-keys/{id}", &[key_id.as_ref()])
            .reading()
    }

    /// `PATCH /api-keys/{id}`: changes the fields that are set and keeps the others. 409 for a revoked or expired key.
    /// When this returns, the change is in effect everywhere.
    ///
    /// ```no_run
    /// # use tollkey_client::Scope;
    /// # async fn example(management: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// let key = management.commerce().api_keys().update(id).scopes([Scope::LINKS_READ]).clear_rate_limit().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "updateCommerceKey")]
    pub fn update(&self, key_id: impl AsRef<str>) -> UpdateKey {
        let call = self
            .call(Method::PATCH, "/api/v1/api-keys/{id}", &[key_id.as_ref()])
            .repeated(Repeat::WhenAnswered);
        UpdateKey {
            call,
            body: api::UpdateKey::default(),
        }
    }

    /// `POST /api-keys/{id}/revoke`: revokes a key permanently. When this returns, the key is rejected everywhere. Can be
    /// repeated.
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// management.commerce().api_keys().revoke(id).reason("rotated").await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "revokeCommerceKey")]
    pub fn revoke(&self, key_id: impl AsRef<str>) -> RevokeKey {
        RevokeKey {
            call: self.post("/api/v1/api-keys/{id}/revoke", key_id.as_ref()),
            body: api::RevokeKey::default(),
        }
    }

    /// `POST /api-keys/{id}/suspend`: suspends a key until [`resume`](Self::resume). Can be repeated; 409 for a revoked key.
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// let key = management.commerce().api_keys().suspend(id).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "suspendCommerceKey")]
    pub fn suspend(&self, key_id: impl AsRef<str>) -> Request<Key> {
        self.post("/api/v1/api-keys/{id}/suspend", key_id.as_ref())
            .json(&api::Nothing {})
            .reading()
    }

    /// `POST /api-keys/{id}/resume`: resumes a suspended key. Can be repeated; 409 for a revoked key.
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// let key = management.commerce().api_keys().resume(id).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "resumeCommerceKey")]
    pub fn resume(&self, key_id: impl AsRef<str>) -> Request<Key> {
        self.post("/api/v1/api-keys/{id}/resume", key_id.as_ref())
            .repeated(Repeat::WhenAnswered)
            .json(&api::Nothing {})
            .reading()
    }

    /// `POST /api-keys/{id}/rotate`: creates a successor with the same restrictions and expiration. The predecessor expires
    /// immediately, or after an overlap. 409 unless the key is active and was not rotated before.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// # async fn example(management: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// let successor = management.commerce().api_keys().rotate(id).overlap(Duration::from_secs(86_400)).await?;
    /// println!("{}", successor.api_key.expose());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "rotateCommerceKey")]
    pub fn rotate(&self, key_id: impl AsRef<str>) -> RotateKey {
        let call = self.post("/api/v1/api-keys/{id}/rotate", key_id.as_ref());
        RotateKey {
            call: call.creating(),
            body: api::RotateKey::default(),
        }
    }
}

/// Creates a commerce key: [`ApiKeys::create`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct CreateKey {
    call: Call,
    body: api::CreateKey,
}

impl CreateKey {
    /// Live or test; live when not set.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.body.mode = Some(mode);
        self
    }

    /// The scopes; `commerce` when not set. An empty list is rejected.
    pub fn scopes(mut self, scopes: impl IntoIterator<Item = impl Into<Scope>>) -> Self {
        self.body.scopes = Some(texts(scopes.into_iter().map(Into::into)));
        self
    }

    /// Restricts the key to these merchants (a scoped key). 403 `scoped_keys_unavailable` if the account's operating model
    /// has no scoped keys.
    pub fn merchants(mut self, merchants: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.body.merchants = Some(merchants.into_iter().map(Into::into).collect());
        self
    }

    /// Restricts the key to these features (a scoped key). With merchants alone, it has all features of the operating model.
    pub fn features(mut self, features: impl IntoIterator<Item = Feature>) -> Self {
        self.body.features = Some(texts(features));
        self
    }

    fn request(self) -> Request<CreatedKey> {
        self.call.json(&self.body).reading()
    }
}
restrictions!(CreateKey);
idempotent!(CreateKey);
sends!(CreateKey => CreatedKey);

/// The list of commerce keys: [`ApiKeys::list`].
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
            .reading_with(Page::read)
    }
}
sends!(ListKeys => Page<Key>);
by_cursor!(ListKeys: Key);

/// Changes a commerce key: [`ApiKeys::update`]. A JSON merge patch (RFC 7396): fields that are not set stay.
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct UpdateKey {
    call: Call,
    body: api::UpdateKey,
}

impl UpdateKey {
    /// The new name: 1 to 255 characters.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.body.name = Patch::Value(name.into());
        self
    }

    /// The scopes, instead of the present ones.
    pub fn scopes(mut self, scopes: impl IntoIterator<Item = impl Into<Scope>>) -> Self {
        self.body.scopes = Patch::Value(texts(scopes.into_iter().map(Into::into)));
        self
    }

    /// Resets the scopes to the default: `commerce`.
    pub fn clear_scopes(mut self) -> Self {
        self.body.scopes = Patch::Null;
        self
    }

    /// When the key expires, in the future.
    pub fn expires_at(mut self, at: impl Into<Moment>) -> Self {
        self.body.expires_at = Patch::Value(at.into());
        self
    }

    /// Removes the expiration.
    pub fn clear_expires_at(mut self) -> Self {
        self.body.expires_at = Patch::Null;
        self
    }

    /// The merchants of a scoped key. Once set, they cannot be cleared.
    pub fn merchants(mut self, merchants: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.body.merchants = Patch::Value(merchants.into_iter().map(Into::into).collect());
        self
    }

    /// The features of a scoped key. Once set, they cannot be cleared.
    pub fn features(mut self, features: impl IntoIterator<Item = Feature>) -> Self {
        self.body.features = Patch::Value(texts(features));
        self
    }

    /// The IP allowlist: CIDR ranges with host bits zero.
    pub fn allowed_ips(mut self, networks: impl IntoIterator<Item = impl ToString>) -> Self {
        self.body.allowed_ips = Patch::Value(texts(networks));
        self
    }

    /// Removes the IP allowlist.
    pub fn clear_allowed_ips(mut self) -> Self {
        self.body.allowed_ips = Patch::Null;
        self
    }

    /// The rate limit: at most `limit` uses (1 to 1,000,000) per `window` (1 s to a day, rounded up to whole seconds).
    pub fn rate_limit(mut self, limit: u32, window: Duration) -> Self {
        let window_seconds = Patch::Value(seconds(window));
        self.body.rate_limit = Patch::Value(UpdateRateLimit {
            limit: Patch::Value(limit.into()),
            window_seconds,
        });
        self
    }

    /// Removes the rate limit.
    pub fn clear_rate_limit(mut self) -> Self {
        self.body.rate_limit = Patch::Null;
        self
    }

    /// Fields to merge into the metadata; null removes a field.
    pub fn metadata(
        mut self,
        pairs: impl IntoIterator<Item = (impl Into<String>, impl Into<Value>)>,
    ) -> Self {
        self.body.metadata = Patch::Value(object(pairs));
        self
    }

    /// Removes all metadata.
    pub fn clear_metadata(mut self) -> Self {
        self.body.metadata = Patch::Null;
        self
    }

    fn request(self) -> Request<Key> {
        self.call.json(&self.body).reading()
    }
}
sends!(UpdateKey => Key);

/// Revokes a commerce key: [`ApiKeys::revoke`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct RevokeKey {
    call: Call,
    body: api::RevokeKey,
}

impl RevokeKey {
    /// The reason: at most 255 characters.
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.body.reason = Some(reason.into());
        self
    }

    fn request(self) -> Request<Message> {
        self.call.json(&self.body).reading()
    }
}
sends!(RevokeKey => Message);

/// Rotates a commerce key: [`ApiKeys::rotate`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct RotateKey {
    call: Call,
    body: api::RotateKey,
}

impl RotateKey {
    /// How long the predecessor stays valid: up to a week, rounded up to whole seconds. When not set, it expires immediately.
    pub fn overlap(mut self, overlap: Duration) -> Self {
        self.body.overlap_seconds = Some(seconds(overlap));
        self
    }

    fn request(self) -> Request<CreatedKey> {
        self.call.json(&self.body).reading()
    }
}
idempotent!(RotateKey);
sends!(RotateKey => CreatedKey);
