//! Verification: [`Client::verify`], [`Client::verify_batch`] and [`Client::introspect`]; and the calling key,
//! [`Client::whoami`].

use std::net::IpAddr;

use reqwest::Method;
use tollkey_api::verification::{
    IntrospectRequest, VerifyBatchRequest, VerifyBatchResponse, VerifyRequest,
};
use tollkey_core::{Mode, Scope};

pub use tollkey_api::verification::{
    IntrospectResponse, Invalid, RateLimitState, Valid, VerifiedKey, VerifyResponse, WhoAmI,
    WhoAmIRest,
};

use crate::{
    Client, Request, Secret,
    members::texts,
    request::{Call, sends},
};

/// Verification with a service key, a token with the role `service`, or a secret key for the keys of the same account.
impl Client {
    /// `POST /verify`: checks whether a key allows a request. Pass method, path, merchant and client IP whenever they are known:
    /// a key with a restriction is denied if the value for it is missing.
    ///
    /// A verification counts against the key's rate limit, and counts twice if it is sent again because its response was lost. A
    /// user may be waiting: limit the whole call with [`with_deadline`](Self::with_deadline).
    ///
    /// ```no_run
    /// # use tollkey_client::{Auth, Client, Scope};
    /// # async fn example(tollkey: Client, service_key: String, presented: String) -> Result<(), tollkey_client::Error> {
    /// let service = tollkey.with_auth(Auth::service(service_key));
    /// let verdict =
    ///     service.verify(&presented).scopes([Scope::SESSIONS_WRITE]).method("POST").path("/sessions").await?;
    /// match verdict.into_result() {
    ///     Ok(valid) => println!("a key of {}", valid.key.account_id),
    ///     Err(denied) => println!("no: {}", denied.code),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn verify(&self, key: impl Into<Secret>) -> Verify {
        Verify {
            call: Call::new(self, Method::POST, "/api/v1/verify", &[]).for_service(),
            request: VerificationRequest::new(key).request,
        }
    }

    /// `POST /verify/batch`: 1 to 100 independent verifications in one request. The results are in the order
    /// of the requests.
    ///
    /// ```no_run
    /// # use tollkey_client::{Client, verification::VerificationRequest};
    /// # async fn example(service: Client, one: &str, two: &str) -> Result<(), tollkey_client::Error> {
    /// let requests = [
    ///     VerificationRequest::new(one),
    ///     VerificationRequest::new(two).method("GET").path("/tokens"),
    /// ];
    /// for verdict in service.verify_batch(requests).await? {
    ///     println!("{}", verdict.code());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "verifyBatch")]
    pub fn verify_batch(
        &self,
        requests: impl IntoIterator<Item = VerificationRequest>,
    ) -> VerifyBatch {
        let call = Call::new(self, Method::POST, "/api/v1/verify/batch", &[]).for_service();
        VerifyBatch {
            call,
            requests: requests.into_iter().collect(),
        }
    }

    /// `POST /introspect` (RFC 7662): returns whether a key is active, and its claims. A key that does not allow the described
    /// request is inactive.
    ///
    /// ```no_run
    /// # async fn example(service: tollkey_client::Client, presented: String) -> Result<(), tollkey_client::Error> {
    /// let token = service.introspect(&presented).await?;
    /// println!("{} {:?}", token.active, token.scope);
    /// # Ok(())
    /// # }
    /// ```
    pub fn introspect(&self, token: impl Into<Secret>) -> Introspect {
        let call = Call::new(self, Method::POST, "/api/v1/introspect", &[]).for_service();
        Introspect {
            call,
            request: VerificationRequest::new(token).request,
        }
    }

    /// `GET /whoami`: the calling key. A publishable key gets only its ID, family, mode and status.
    ///
    /// ```no_run
    /// # use tollkey_client::{Auth, Client};
    /// # async fn example(tollkey: Client, api_key: String) -> Result<(), tollkey_client::Error> {
    /// let me = tollkey.with_auth(Auth::key(api_key)).whoami().await?;
    /// println!("{} {}", me.family, me.mode);
    /// # Ok(())
    /// # }
    /// ```
    pub fn whoami(&self) -> Request<WhoAmI> {
        Call::new(self, Method::GET, "/api/v1/whoami", &[]).reading()
    }

    /// `DELETE /whoami`: revokes the calling key permanently. Publishable keys cannot. When this returns, the key is rejected
    /// everywhere.
    ///
    /// If a response is lost and the call is sent again, the second attempt gets 401, and
    /// [`may_have_taken_effect`](crate::Error::may_have_taken_effect) is `true`: the key was revoked, or never existed.
    ///
    /// ```no_run
    /// # use tollkey_client::{Auth, Client};
    /// # async fn example(tollkey: Client, leaked: String) -> Result<(), tollkey_client::Error> {
    /// tollkey.with_auth(Auth::key(leaked)).revoke_self().await?;
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "revokeWhoami")]
    pub fn revoke_self(&self) -> Request<()> {
        Call::new(self, Method::DELETE, "/api/v1/whoami", &[]).reading_nothing()
    }
}

/// Adds the setters to a builder with one verification.
macro_rules! request_setters {
    ($builder:ty) => {
        impl $builder {
            /// The request needs all of these scopes.
            pub fn scopes(mut self, scopes: impl IntoIterator<Item = impl Into<Scope>>) -> Self {
                self.request.scopes = Some(texts(scopes.into_iter().map(Into::into)));
                self
            }

            /// The method of the request, as sent.
            pub fn method(mut self, method: impl Into<String>) -> Self {
                self.request.method = Some(method.into());
                self
            }

            /// The path of the request, as sent.
            pub fn path(mut self, path: impl Into<String>) -> Self {
                self.request.path = Some(path.into());
                self
            }

            /// The request needs this mode.
            pub fn mode(mut self, mode: Mode) -> Self {
                self.request.mode = Some(mode);
                self
            }

            /// The merchant that the request concerns.
            pub fn merchant(mut self, merchant: impl Into<String>) -> Self {
                self.request.merchant = Some(merchant.into());
                self
            }

            /// The IP address of the request's client, as this resource server sees it.
            pub fn client_ip(mut self, address: impl Into<IpAddr>) -> Self {
                self.request.client_ip = Some(address.into().to_string());
                self
            }
        }
    };
}

/// A presented key and the request that it came with, for [`Client::verify_batch`].
#[derive(Debug, Clone)]
#[must_use]
pub struct VerificationRequest {
    request: VerifyRequest,
}

impl VerificationRequest {
    /// Asks only whether the key is valid.
    pub fn new(key: impl Into<Secret>) -> Self {
        Self {
            request: VerifyRequest {
                key: key.into(),
                method: None,
                path: None,
                scopes: None,
                mode: None,
                merchant: None,
                client_ip: None,
            },
        }
    }
}
request_setters!(VerificationRequest);

/// Verifies a key: [`Client::verify`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct Verify {
    call: Call,
    request: VerifyRequest,
}

impl Verify {
    fn request(self) -> Request<VerifyResponse> {
        self.call.json(&self.request).reading()
    }
}
request_setters!(Verify);
sends!(Verify => VerifyResponse);

/// Verifies several keys: [`Client::verify_batch`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct VerifyBatch {
    call: Call,
    requests: Vec<VerificationRequest>,
}

impl VerifyBatch {
    fn request(self) -> Request<Vec<VerifyResponse>> {
        let requests: Vec<_> = self
            .requests
            .into_iter()
            .map(|request| request.request)
            .collect();
        let expected = requests.len();
        self.call
            .json(&VerifyBatchRequest { requests })
            .reading_with(move |reply| {
                let VerifyBatchResponse { results, .. } = reply.json()?;
                // With another number of results, one could be taken for that of another key.
                let is_complete = results.len() == expected;
                is_complete.then_some(results).ok_or_else(|| {
                    reply.unreadable("the number of results is not the number of requests")
                })
            })
    }
}
sends!(VerifyBatch => Vec<VerifyResponse>);

/// Introspects a key: [`Client::introspect`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct Introspect {
    call: Call,
    request: VerifyRequest,
}

impl Introspect {
    fn request(self) -> Request<IntrospectResponse> {
        let VerifyRequest {
            key,
            method,
            path,
            scopes,
            mode,
            merchant,
            client_ip,
        } = self.request;
        let scopes = scopes.map(|scopes| scopes.join(" "));
        let form = IntrospectRequest {
            token: key,
            token_type_hint: None,
            method,
            path,
            scopes,
            mode,
            merchant,
            client_ip,
            client_id: None,
            client_secret: None,
        };
        self.call.form(&form).reading()
    }
}
request_setters!(Introspect);
sends!(Introspect => IntrospectResponse);
