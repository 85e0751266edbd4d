//! Accounts ([`Client::accounts`]) and service keys ([`Client::service_keys`]), for operators.

use reqwest::Method;
use tollkey_api::operator as api;
use tollkey_core::OperatingModel;

pub use tollkey_api::operator::{Account, CreatedServiceKey, ServiceKey};

use crate::{
    Client, Request, Secret,
    members::idempotent,
    request::{Call, sends},
    retry::Repeat,
};

/// Accounts: [`Client::accounts`]. An account is not created; it exists once a management token names it.
#[derive(Debug, Clone)]
pub struct Accounts(Client);

impl Accounts {
    pub(crate) fn new(client: &Client) -> Self {
        Self(client.clone())
    }

    /// `GET /accounts/{id}`: one account.
    ///
    /// ```no_run
    /// # async fn example(operator: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// println!("{}", operator.accounts().get("acme").await?.operating_model);
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "getAccount")]
    pub fn get(&self, id: impl AsRef<str>) -> Request<Account> {
        Call::new(
            &self.0,
            Method::GET,
            "/api/v1/accounts/{id}",
            &[id.as_ref()],
        )
        .reading()
    }

    /// `PUT /accounts/{id}`: sets the operating model of an account, which limits the features of its scoped keys,
    /// including existing ones.
    ///
    /// ```no_run
    /// # use tollkey_client::OperatingModel;
    /// # async fn example(operator: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// operator.accounts().set_operating_model("acme", OperatingModel::Ecosystem).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "putAccount")]
    pub fn set_operating_model(
        &self,
        id: impl AsRef<str>,
        operating_model: OperatingModel,
    ) -> Request<Account> {
        let call = Call::new(
            &self.0,
            Method::PUT,
            "/api/v1/accounts/{id}",
            &[id.as_ref()],
        );
        call.repeated(Repeat::WhenAnswered)
            .json(&api::PutAccount { operating_model })
            .reading()
    }
}

/// Service keys: [`Client::service_keys`].
#[derive(Debug, Clone)]
pub struct ServiceKeys(Client);

impl ServiceKeys {
    pub(crate) fn new(client: &Client) -> Self {
        Self(client.clone())
    }

    /// `POST /service-keys`: creates a service key. Its name has 1 to 100 characters. Only this response contains
    /// the full key.
    ///
    /// ```no_run
    /// # async fn example(operator: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// let created = operator.service_keys().create("checkout gateway").await?;
    /// println!("{}", created.key.expose());
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "createServiceKey")]
    pub fn create(&self, name: impl Into<String>) -> CreateServiceKey {
        let call = Call::new(&self.0, Method::POST, "/api/v1/service-keys", &[]);
        CreateServiceKey {
            call,
            idempotency_key: None,
            body: api::CreateServiceKey { name: name.into() },
        }
    }

    /// `GET /service-keys`: all service keys, including revoked ones.
    ///
    /// ```no_run
    /// # async fn example(operator: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
    /// for key in operator.service_keys().list().await? {
    ///     println!("{} …{}", key.name, key.last4);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "listServiceKeys")]
    pub fn list(&self) -> Request<Vec<ServiceKey>> {
        Call::new(&self.0, Method::GET, "/api/v1/service-keys", &[]).reading()
    }

    /// `DELETE /service-keys/{id}`: revokes a service key permanently. Can be repeated.
    ///
    /// ```no_run
    /// # async fn example(operator: tollkey_client::Client, id: &str) -> Result<(), tollkey_client::Error> {
    /// operator.service_keys().revoke(id).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "revokeServiceKey")]
    pub fn revoke(&self, id: impl AsRef<str>) -> Request<()> {
        Call::new(
            &self.0,
            Method::DELETE,
            "/api/v1/service-keys/{id}",
            &[id.as_ref()],
        )
        .reading_nothing()
    }
}

/// Creates a service key: [`ServiceKeys::create`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct CreateServiceKey {
    call: Call,
    idempotency_key: Option<Secret>,
    body: api::CreateServiceKey,
}

impl CreateServiceKey {
    fn request(self) -> Request<CreatedServiceKey> {
        self.call
            .creating(self.idempotency_key)
            .json(&self.body)
            .reading()
    }
}
idempotent!(CreateServiceKey);
sends!(CreateServiceKey => CreatedServiceKey);
