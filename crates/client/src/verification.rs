//! Verification: [`Client::verify`], [`Client::verify_batch`], [`Client::introspect`], and the key that calls,
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

/// Verification, with a service key, a token with the role `service`, or a secret key for the keys of its own account.
impl Client {
    /// `POST /verify`: may this key do that, now? What a restriction of the key needs and the question lacks, denies: give
    /// method, path, merchant and address whenever they are known.
    ///
    /// It is a use of the key: a call that is sent again because its answer was lost takes from the key's rate limit twice. And a request
    /// is waiting for it: in front of users, bound the whole call by [`with_deadline`](Self::with_deadline).
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
            question: Question::new(key),
        }
    }

    /// `POST /verify/batch`: 1 to 100 verifications at once, each judged for itself. The answers come in the order of the
    /// questions.
    ///
    /// ```no_run
    /// # use tollkey_client::{Client, verification::Question};
    /// # async fn example(service: Client, one: &str, two: &str) -> Result<(), tollkey_client::Error> {
    /// let questions = [Question::new(one), Question::new(two).method("GET").path("/tokens")];
    /// for verdict in service.verify_batch(questions).await? {
    ///     println!("{}", verdict.code());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[doc(alias = "verifyBatch")]
    pub fn verify_batch(&self, questions: impl IntoIterator<Item = Question>) -> VerifyBatch {
        let call = Call::new(self, Method::POST, "/api/v1/verify/batch", &[]).for_service();
        VerifyBatch {
            call,
            questions: questions.into_iter().collect(),
        }
    }

    /// `POST /introspect` (RFC 7662): is this key active, and what does it stand for? A key that may not do what the
    /// question is about is inactive.
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
            question: Question::new(token),
        }
    }

    /// `GET /whoami`: the key that calls. A publishable one learns only its id, family, mode and status.
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

    /// `DELETE /whoami`: revokes the key that calls, for good. Publishable keys may not. Once this returns, the key is
    /// refused everywhere.
    ///
    /// When an answer is lost and the call sent again, the repeat is refused with 401, which
    /// [`may_have_been_done`](crate::Error::may_have_been_done) says too: a key that is refused was revoked, or never was one.
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

/// A presented key, and what the request it came with needs: what is asked of [`Client::verify_batch`].
#[derive(Debug, Clone)]
#[must_use]
pub struct Question(VerifyRequest);

impl Question {
    /// Is this key one that may do anything at all?
    pub fn new(key: impl Into<Secret>) -> Self {
        Self(VerifyRequest {
            key: key.into(),
            method: None,
            path: None,
            scopes: None,
            mode: None,
            merchant: None,
            client_ip: None,
        })
    }

    /// All of these scopes are needed.
    pub fn scopes(mut self, scopes: impl IntoIterator<Item = impl Into<Scope>>) -> Self {
        self.0.scopes = Some(texts(scopes.into_iter().map(Into::into)));
        self
    }

    /// The method of the request, as sent.
    pub fn method(mut self, method: impl Into<String>) -> Self {
        self.0.method = Some(method.into());
        self
    }

    /// The path of the request, as sent.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.0.path = Some(path.into());
        self
    }

    /// This mode is needed.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.0.mode = Some(mode);
        self
    }

    /// The merchant the request is about.
    pub fn merchant(mut self, merchant: impl Into<String>) -> Self {
        self.0.merchant = Some(merchant.into());
        self
    }

    /// The address the request came from, as this resource server saw it.
    pub fn client_ip(mut self, address: impl Into<IpAddr>) -> Self {
        self.0.client_ip = Some(address.into().to_string());
        self
    }
}

/// The setters of a [`Question`] for a call that asks one.
macro_rules! asks {
    ($builder:ty) => {
        impl $builder {
            /// All of these scopes are needed.
            pub fn scopes(self, scopes: impl IntoIterator<Item = impl Into<Scope>>) -> Self {
                Self {
                    question: self.question.scopes(scopes),
                    ..self
                }
            }

            /// The method of the request, as sent.
            pub fn method(self, method: impl Into<String>) -> Self {
                Self {
                    question: self.question.method(method),
                    ..self
                }
            }

            /// The path of the request, as sent.
            pub fn path(self, path: impl Into<String>) -> Self {
                Self {
                    question: self.question.path(path),
                    ..self
                }
            }

            /// This mode is needed.
            pub fn mode(self, mode: Mode) -> Self {
                Self {
                    question: self.question.mode(mode),
                    ..self
                }
            }

            /// The merchant the request is about.
            pub fn merchant(self, merchant: impl Into<String>) -> Self {
                Self {
                    question: self.question.merchant(merchant),
                    ..self
                }
            }

            /// The address the request came from, as this resource server saw it.
            pub fn client_ip(self, address: impl Into<IpAddr>) -> Self {
                Self {
                    question: self.question.client_ip(address),
                    ..self
                }
            }
        }
    };
}

/// Verifies a key: [`Client::verify`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct Verify {
    call: Call,
    question: Question,
}

impl Verify {
    fn request(self) -> Request<VerifyResponse> {
        self.call.json(&self.question.0).reading()
    }
}
asks!(Verify);
sends!(Verify => VerifyResponse);

/// Verifies several keys: [`Client::verify_batch`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct VerifyBatch {
    call: Call,
    questions: Vec<Question>,
}

impl VerifyBatch {
    fn request(self) -> Request<Vec<VerifyResponse>> {
        let requests: Vec<_> = self
            .questions
            .into_iter()
            .map(|question| question.0)
            .collect();
        let asked = requests.len();
        self.call
            .json(&VerifyBatchRequest { requests })
            .reading_with(move |reply| {
                let VerifyBatchResponse { results, .. } = reply.json()?;
                // Fewer or more answers than questions cannot be told apart: nobody is let in by another's answer.
                let each = results.len() == asked;
                each.then_some(results)
                    .ok_or_else(|| reply.unreadable("there are not as many answers as questions"))
            })
    }
}
sends!(VerifyBatch => Vec<VerifyResponse>);

/// Introspects a key: [`Client::introspect`].
#[derive(Debug, Clone)]
#[must_use = "nothing is sent until it is awaited"]
pub struct Introspect {
    call: Call,
    question: Question,
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
        } = self.question.0;
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
        };
        self.call.form(&form).reading()
    }
}
asks!(Introspect);
sends!(Introspect => IntrospectResponse);
