//! Accounts ([`Client::accounts`]) and service keys ([`Client::service_keys`]), for operators.

use reqwest::Method;
use tollkey_api::operator as api;
use tollkey_core::OperatingModel;

pub use tollkey_api::operator::{Account, CreatedServiceKey, ServiceKey};

use crate::{
    Client, Request,
    members::idempotent,
    request::{Call, sends},
    retry::Repeat,
};

/// Accounts: [`Client::accounts`]. An account is not created; it exists once a management token names it.
#[derive(Debug, Clone)]
pub struct Accounts(pub(crate) Client);

impl Accounts {
    fn call(&self, method: Method, id: &str) -> Call {
        Call::new(&self.0, method, "/api/v1/accounts/{id}", &[id])
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
        self.call(Method::GET, id.as_ref()).reading()
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
        self.call(Method::PUT, id.as_ref())
            .repeated(Repeat::WhenAnswered)
            .json(&api::PutAccount { operating_model })
            .reading()
    }
}

/// Service keys: [`Client::service_keys`].
#[derive(Debug, Clone)]
pub struct ServiceKeys(pub(crate) Client);

impl ServiceKeys {
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
            call: call.creating(),
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
        let (route, id) = ("/api/v1/service-keys/{id}", [id.as_ref()]);
        Call::new(&self.0, Method::DELETE, route, &id).reading_nothing()
    }
}

/// Creates a service key: [`ServiceKeys::create`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct CreateServiceKey {
    call: Call,
    body: api::CreateServiceKey,
}

impl CreateServiceKey {
    fn request(self) -> Request<CreatedServiceKey> {
        self.call.json(&self.body).reading()
    }
}
idempotent!(CreateServiceKey);
sends!(CreateServiceKey => CreatedServiceKey);
