//! Applications and their keys (`ks_…`): [`Client::applications`].

use reqwest::Method;
use tollkey_api::{
    Patch,
    applications::{self as api, Include},
};
use tollkey_core::{Mode, Scope};

pub use tollkey_api::applications::{Application, CreatedKey, IncludedKey, Key, Page, RateLimit};

use crate::{
    Client, Request,
    list::by_page,
    members::{idempotent, restrictions, texts},
    request::{Call, sends},
    retry::Repeat,
    url_text::UrlText,
};

/// The applications of an account.
#[derive(Debug, Clone)]
pub struct Applications(pub(crate) Client);

impl Applications {
    fn call(&self, method: Method, route: &'static str, segments: &[&str]) -> Call {
        Call::new(&self.0, method, route, segments).in_account()
    }

    /// `POST /applications`: creates an application. Its name has 1 to 100 characters and is unique in the account
    /// (409 `application_name_taken`).
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let app = management.applications().create("Production Web Store").description("Primary e-commerce backend").await?;
    /// println!("{}", app.id);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "createApplication")]
    pub fn create(&self, name: impl Into<String>) -> CreateApplication {
        CreateApplication {
            call: self
                .call(Method::POST, "/api/v1/applications", &[])
                .creating(),
            body: api::CreateApplication {
                name: name.into(),
                description: None,
            },
        }
    }

    /// `GET /applications`: the applications, newest first. The pages are numbered: if an application is created or
    /// deleted while you read them, the following applications move, so that one is returned twice or skipped. Read
    /// the whole list before you change it.
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let page = management.applications().list().limit(20).await?;
    /// println!("{} of {}", page.items.len(), page.total_items);
    ///
    /// let mut all = management.applications().list().include_api_keys().items();
    /// while let Some(app) = all.next().await.transpose()? {
    ///     println!("{}: {} keys", app.name, app.api_keys.map_or(0, |keys| keys.len()));
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "listApplications")]
    pub fn list(&self) -> ListApplications {
        ListApplications {
            call: self.call(Method::GET, "/api/v1/applications", &[]),
            include: None,
            page: None,
            limit: None,
        }
    }

    /// `GET /applications/{id}`: one application.
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// let app = management.applications().get(id).await?;
    /// println!("{} is enabled: {}", app.name, app.is_enabled);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "getApplication")]
    pub fn get(&self, id: impl AsRef<str>) -> Request<Application> {
        self.call(Method::GET, "/api/v1/applications/{id}", &[id.as_ref()])
            .reading()
    }

    /// `PATCH /applications/{id}`: changes the fields that are set and keeps the others.
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// let app = management.applications().update(id).name("Web Store EU").clear_description().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "updateApplication")]
    pub fn update(&self, id: impl AsRef<str>) -> UpdateApplication {
        UpdateApplication {
            call: self.call(Method::PATCH, "/api/v1/applications/{id}", &[id.as_ref()]),
            body: api::UpdateApplication::default(),
        }
    }

    /// `PATCH /applications/{id}/status`: enables the application, so that its keys are accepted again.
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// assert!(management.applications().enable(id).await?.is_enabled);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "setApplicationStatus")]
    pub fn enable(&self, id: impl AsRef<str>) -> Request<Application> {
        self.set_enabled(id.as_ref(), true)
    }

    /// `PATCH /applications/{id}/status`: disables the application and with it its keys, until
    /// [`enable`](Self::enable).
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// let app = management.applications().disable(id).await?;
    /// // From here on its keys are rejected everywhere.
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "setApplicationStatus")]
    pub fn disable(&self, id: impl AsRef<str>) -> Request<Application> {
        self.set_enabled(id.as_ref(), false)
    }

    fn set_enabled(&self, id: &str, is_enabled: bool) -> Request<Application> {
        let call = self.call(Method::PATCH, "/api/v1/applications/{id}/status", &[id]);
        let repeat = if is_enabled {
            Repeat::WhenAnswered
        } else {
            Repeat::Always
        };
        call.repeated(repeat)
            .json(&api::SetApplicationStatus { is_enabled })
            .reading()
    }

    /// `DELETE /applications/{id}`: deletes the application and revokes its keys permanently.
    ///
    /// If a response is lost and the call is sent again, the second attempt gets 404 with
    /// [`attempts`](crate::Error::attempts) above 1.
    ///
    /// ```no_run
    /// # async fn example(management: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// management.applications().delete(id).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "deleteApplication")]
    pub fn delete(&self, id: impl AsRef<str>) -> Request<()> {
        self.call(Method::DELETE, "/api/v1/applications/{id}", &[id.as_ref()])
            .reading_nothing()
    }

    /// The keys of one application.
    #[must_use]
    pub fn api_keys(&self, application_id: impl Into<String>) -> ApiKeys {
        ApiKeys {
            client: self.0.clone(),
            application_id: UrlText::new(application_id),
        }
    }
}

/// Creates an application: [`Applications::create`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct CreateApplication {
    call: Call,
    body: api::CreateApplication,
}

impl CreateApplication {
    /// The description: at most 500 characters.
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.body.description = Some(description.into());
        self
    }

    fn request(self) -> Request<Application> {
        self.call.json(&self.body).reading()
    }
}
idempotent!(CreateApplication);
sends!(CreateApplication => Application);

/// The list of applications: [`Applications::list`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct ListApplications {
    call: Call,
    include: Option<Include>,
    page: Option<u32>,
    limit: Option<u32>,
}

impl ListApplications {
    /// Adds the newest 100 keys of each application.
    pub fn include_api_keys(mut self) -> Self {
        self.include = Some(Include::ApiKeys);
        self
    }

    fn request(self) -> Request<Page<Application>> {
        let include = self.include.map(|Include::ApiKeys| "apiKeys");
        self.call
            .query("include", include)
            .query("page", self.page)
            .query("limit", self.limit)
            .reading()
    }
}
sends!(ListApplications => Page<Application>);
by_page!(ListApplications: Application);

/// Changes an application: [`Applications::update`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct UpdateApplication {
    call: Call,
    body: api::UpdateApplication,
}

impl UpdateApplication {
    /// The new name: 1 to 100 characters, unique in the account.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.body.name = Patch::Value(name.into());
        self
    }

    /// The new description: at most 500 characters.
    pub fn description(mut self, description: impl Into<String>) -> Self {
        self.body.description = Patch::Value(description.into());
        self
    }

    /// Removes the description.
    pub fn clear_description(mut self) -> Self {
        self.body.description = Patch::Null;
        self
    }

    fn request(self) -> Request<Application> {
        self.call.json(&self.body).reading()
    }
}
sends!(UpdateApplication => Application);

/// The keys of one application: [`Applications::api_keys`].
#[derive(Debug, Clone)]
pub struct ApiKeys {
    client: Client,
    application_id: UrlText,
}

impl ApiKeys {
    fn call(&self, method: Method) -> Call {
        let route = "/api/v1/applications/{id}/api-keys";
        let segments = [self.application_id.as_str()];
        Call::new(&self.client, method, route, &segments).in_account()
    }

    /// `POST /applications/{id}/api-keys`: creates a key. Its description has 1 to 255 characters. Only this
    /// response contains the full key.
    ///
    /// ```no_run
    /// # use tollkey_client::{Mode, Scope};
    /// # async fn example(management: tollkey_client::Client, app_id: &str) -> Result<(), tollkey_client::Error> {
    /// let keys = management.applications().api_keys(app_id);
    /// let created = keys.create("Primary checkout key").mode(Mode::Test).scopes([Scope::SESSIONS_WRITE]).await?;
    /// println!("{}", created.full_key.expose());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "createApplicationKey")]
    pub fn create(&self, description: impl Into<String>) -> CreateKey {
        CreateKey {
            call: self.call(Method::POST).creating(),
            body: api::CreateKey {
                description: description.into(),
                ..api::CreateKey::default()
            },
        }
    }

    /// `GET /applications/{id}/api-keys`: the keys, newest first, including revoked ones. The pages are numbered: if a
    /// key is created while you read them, the following keys move, so that one is returned twice.
    ///
    /// ```no_run
    /// # use tollkey_client::Status;
    /// # async fn example(management: tollkey_client::Client, app_id: &str) -> Result<(), tollkey_client::Error> {
    /// let mut keys = management.applications().api_keys(app_id).list().items();
    /// while let Some(key) = keys.next().await.transpose()? {
    ///     if key.status == Status::Active {
    ///         println!("{} {}", key.key_prefix, key.description);
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "listApplicationKeys")]
    pub fn list(&self) -> ListKeys {
        ListKeys {
            call: self.call(Method::GET),
            page: None,
            limit: None,
        }
    }

    /// `DELETE /applications/{id}/api-keys/{keyId}`: revokes a key permanently. When this returns, the key is rejected
    /// everywhere. A key that is already revoked gives 400 `key_already_revoked`.
    ///
    /// ```no_run
    /// # async fn example(
    /// #     management: tollkey_client::Client, app_id: &str, key_id: &str,
    /// # ) -> Result<(), tollkey_client::Error> {
    /// management.applications().api_keys(app_id).revoke(key_id).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "revokeApplicationKey")]
    pub fn revoke(&self, key_id: impl AsRef<str>) -> Request<()> {
        let route = "/api/v1/applications/{id}/api-keys/{keyId}";
        let segments = [self.application_id.as_str(), key_id.as_ref()];
        Call::new(&self.client, Method::DELETE, route, &segments)
            .in_account()
            .done_before("key_already_revoked")
            .reading_nothing()
    }
}

/// Creates a key of an application: [`ApiKeys::create`].
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

    fn request(self) -> Request<CreatedKey> {
        self.call.json(&self.body).reading()
    }
}
restrictions!(CreateKey);
idempotent!(CreateKey);
sends!(CreateKey => CreatedKey);

/// The list of an application's keys: [`ApiKeys::list`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct ListKeys {
    call: Call,
    page: Option<u32>,
    limit: Option<u32>,
}

impl ListKeys {
    fn request(self) -> Request<Page<Key>> {
        self.call
            .query("page", self.page)
            .query("limit", self.limit)
            .reading()
    }
}
sends!(ListKeys => Page<Key>);
by_page!(ListKeys: Key);
