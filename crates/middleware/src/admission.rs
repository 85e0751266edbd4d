//! Authorizing a request: reading its credential, computing what it requires, and deciding.

use std::{future::pending, sync::Arc};

use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::task::AbortOnDropHandle;
use tollkey_core::{
    AccessRequest, Denial, Invalid, KeyContext, Problem, ProblemCode, RequestPath, Scope, ScopeSet,
    credential::{Credential, Expected},
    network::{InvalidHop, client_address},
};
#[cfg(feature = "test-util")]
use tollkey_verifier::testing::MemorySource;
use tollkey_verifier::{CachedKey, Reservation, Stats, Unavailable, Verdict, Verifier};

use crate::{
    Guard, Rejection, RejectionForm, RequestHead, Requirement, VerifiedKey, key::AdmittedKey,
    source::HttpSource,
};

/// The verifier of a guard.
pub(crate) enum Verifiers {
    /// Subscribed to a server.
    Server(Verifier<HttpSource>),
    /// With keys declared in code.
    #[cfg(feature = "test-util")]
    Memory(Verifier<MemorySource>),
}

macro_rules! each {
    ($verifiers:expr, $verifier:ident => $expression:expr) => {
        match $verifiers {
            Verifiers::Server($verifier) => $expression,
            #[cfg(feature = "test-util")]
            Verifiers::Memory($verifier) => $expression,
        }
    };
}

impl Verifiers {
    fn reserve_cached(
        &self,
        key: &str,
        access: &AccessRequest<'_>,
    ) -> Option<Result<Reservation, Verdict>> {
        each!(self, verifier => verifier.reserve_cached(key, access))
    }

    /// Reserves a use of the key, with a request to the server if the key is not cached.
    async fn reserve(
        &self,
        key: &str,
        access: &AccessRequest<'_>,
        requirement: &Requirement,
    ) -> Result<Result<Reservation, Verdict>, Unavailable> {
        each!(self, verifier => if requirement.grace.is_zero() {
            verifier.reserve(key, access).await
        } else {
            verifier.reserve_without_immediate_revocation(key, access, requirement.grace).await
        })
    }

    /// Spawns a task on `runtime` that waits until the key can no longer be used.
    fn until_unusable(&self, key: &CachedKey, runtime: &Handle) -> JoinHandle<Denial> {
        let key = key.clone();
        each!(self, verifier => {
            let verifier = verifier.clone();
            runtime.spawn(async move { verifier.until_unusable(&key).await })
        })
    }

    pub(crate) fn stats(&self) -> Stats {
        each!(self, verifier => verifier.stats())
    }
}

/// The admission of a request by a guard, with its key.
#[derive(Debug, Clone)]
pub struct Admission(Admitted);

#[derive(Debug, Clone)]
enum Admitted {
    With(VerifiedKey),
    /// The key is optional and the request has none.
    WithoutKey(Guard, RejectionForm),
}

impl Admission {
    /// Returns the key, or `None` if it is optional and the request has none.
    #[must_use]
    pub fn key(&self) -> Option<&VerifiedKey> {
        match &self.0 {
            Admitted::With(key) => Some(key),
            Admitted::WithoutKey(..) => None,
        }
    }

    /// Returns the key, for a handler that requires one.
    ///
    /// # Errors
    /// The [`Rejection`] to respond with, if the key is optional and the request has none.
    pub fn required_key(&self) -> Result<&VerifiedKey, Rejection> {
        match &self.0 {
            Admitted::With(key) => Ok(key),
            Admitted::WithoutKey(guard, form) => Err(guard.missing(*form)),
        }
    }

    /// Checks a further requirement inside of the layer. A rejected request gives its use back to the key's
    /// rate limit and does not count as a use.
    ///
    /// # Errors
    /// The [`Rejection`] to respond with.
    pub fn require(
        &self,
        request: &RequestHead<'_>,
        requirement: &Requirement,
    ) -> Result<(), Rejection> {
        match &self.0 {
            Admitted::WithoutKey(..) if requirement.optional => Ok(()),
            Admitted::WithoutKey(guard, form) => Err(guard.missing(*form)),
            Admitted::With(key) => key.require_of(request, requirement),
        }
    }

    /// Counts the request as a use of the key, unless it was rejected inside of the layer. Returns the
    /// lower-case names and the values of the headers to add to the response.
    pub fn commit(&self) -> Vec<(&'static str, String)> {
        match &self.0 {
            Admitted::With(key) if key.commit() => key.rate_limit_fields().collect(),
            _ => Vec::new(),
        }
    }

    /// Cancels this admission if `guard` is the guard that returned it. Call it when `guard` authorizes the
    /// same request again, as with nested layers, so that the request counts once.
    pub fn cancel_if_same_guard(&self, guard: &Guard) {
        match &self.0 {
            Admitted::With(key) if Arc::ptr_eq(&key.guard().0, &guard.0) => key.cancel(),
            _ => {}
        }
    }
}

impl Guard {
    /// Authorizes a request. Sends a request to the server if the key is not cached.
    ///
    /// # Errors
    /// The [`Rejection`] to respond with.
    pub async fn check(
        &self,
        request: &RequestHead<'_>,
        requirement: &Requirement,
    ) -> Result<Admission, Rejection> {
        let Some((header, key)) = self.presented(request, requirement)? else {
            return Ok(self.admit_without_key(request.form));
        };
        let merchant = self.merchant(request, requirement);
        let access = self.access(request, requirement, merchant.as_deref())?;
        let reserved = self.verifiers().reserve(key, &access, requirement).await;
        let reserved =
            reserved.map_err(|Unavailable| self.reject(Problem::unavailable(), request.form))?;
        self.admit(reserved, (header, key), merchant, requirement, request.form)
    }

    /// Authorizes a request from the cache. Returns `None`, and counts nothing, if the key is not cached: call
    /// [`check`](Self::check) then.
    ///
    /// So a framework needs no boxed future for a request with a cached key.
    #[must_use]
    pub fn check_cached(
        &self,
        request: &RequestHead<'_>,
        requirement: &Requirement,
    ) -> Option<Result<Admission, Rejection>> {
        let checked = || {
            let Some((header, key)) = self.presented(request, requirement)? else {
                return Ok(Some(self.admit_without_key(request.form)));
            };
            let merchant = self.merchant(request, requirement);
            let access = self.access(request, requirement, merchant.as_deref())?;
            let reserved = self.verifiers().reserve_cached(key, &access);
            reserved
                .map(|reserved| {
                    self.admit(reserved, (header, key), merchant, requirement, request.form)
                })
                .transpose()
        };
        checked().transpose()
    }

    pub(crate) async fn until_unusable(&self, key: &CachedKey) -> Denial {
        let waiting = AbortOnDropHandle::new(self.verifiers().until_unusable(key, self.runtime()));
        match waiting.await {
            Ok(denial) => denial,
            // The guard was shut down, so it gets no more changes.
            Err(_) => pending().await,
        }
    }

    /// Returns the key of a request and the name of its header, or `None` if the key is optional and the
    /// request has none.
    fn presented<'a>(
        &self,
        request: &RequestHead<'a>,
        requirement: &Requirement,
    ) -> Result<Option<(&'static str, &'a str)>, Rejection> {
        let headers = self.policy().headers;
        let [first, second] = request.first_two(headers);
        let credential = Credential::read(first.into_iter().chain(second));
        if requirement.optional && matches!(credential, Credential::None) {
            return Ok(None);
        }
        match credential.one(headers, Expected::ApiKey) {
            Ok(key) => Ok(first.map(|(header, _)| (header, key))),
            Err(problem) => Err(self.reject(problem, request.form)),
        }
    }

    fn merchant(&self, request: &RequestHead<'_>, requirement: &Requirement) -> Option<String> {
        requirement
            .merchant
            .as_ref()
            .unwrap_or(&self.policy().merchant)
            .of(request)
    }

    fn admit_without_key(&self, form: RejectionForm) -> Admission {
        Admission(Admitted::WithoutKey(self.clone(), form))
    }

    fn admit(
        &self,
        reserved: Result<Reservation, Verdict>,
        (header, presented): (&'static str, &str),
        merchant: Option<String>,
        requirement: &Requirement,
        form: RejectionForm,
    ) -> Result<Admission, Rejection> {
        match reserved {
            Ok(reservation) => {
                let key = AdmittedKey {
                    guard: self.clone(),
                    reservation,
                    header,
                    merchant,
                    form,
                };
                Ok(Admission(Admitted::With(VerifiedKey(Arc::new(key)))))
            }
            Err(Verdict {
                outcome: Err(denial),
                record: Some(key),
                rate,
                retry_after_seconds,
            }) => {
                let rejection = self.deny(denial, requirement, Some(&key), form);
                Err(rejection.with_rate(rate, retry_after_seconds))
            }
            // The problem depends only on the form of the credential, so all unknown keys get the same one.
            Err(_) => Err(self
                .reject(Expected::ApiKey.problem(presented), form)
                .because_of(Denial::UnknownKey)),
        }
    }

    /// Returns what the request requires of its key.
    pub(crate) fn access<'a>(
        &self,
        request: &RequestHead<'a>,
        requirement: &Requirement,
        merchant: Option<&'a str>,
    ) -> Result<AccessRequest<'a>, Rejection> {
        let policy = self.policy();
        if request.peer.is_none() {
            policy.warnings.no_peer();
        }
        let client_ip = client_address(
            request.peer,
            || request.all("x-forwarded-for"),
            &policy.trusted_proxies,
        )
        .inspect_err(|InvalidHop| policy.warnings.unreadable_hop());
        Ok(AccessRequest {
            method: Some(request.method),
            path: Some(RequestPath::new(request.target, &policy.route_base)),
            client_ip: client_ip.unwrap_or_default(),
            is_client_ip_unreadable: client_ip.is_err(),
            ..self
                .need_of_key(requirement, merchant)
                .ok_or_else(|| self.invalid_requirement(request.form))?
        })
    }

    /// Returns the requirements that do not depend on the request. `None` for a scope that the guard does not
    /// know, which is logged.
    pub(crate) fn need_of_key<'a>(
        &self,
        requirement: &Requirement,
        merchant: Option<&'a str>,
    ) -> Option<AccessRequest<'a>> {
        let scopes = self.needed(requirement).inspect_err(|rule| {
            tracing::error!(%rule, "a route requires a scope that the guard does not know; the request is rejected");
        });
        Some(AccessRequest {
            scopes: scopes.ok()?,
            mode: requirement.mode,
            merchant,
            ..AccessRequest::default()
        })
    }

    fn needed(&self, requirement: &Requirement) -> Result<ScopeSet, Invalid> {
        let names = requirement.scopes.iter().map(Scope::as_str);
        self.policy().catalogue.needed(names)
    }

    /// Returns the rejection for a requirement that the guard cannot check. The cause has been logged.
    pub(crate) fn invalid_requirement(&self, form: RejectionForm) -> Rejection {
        let detail =
            "The requirement of the route is not valid. The log of the application has the cause.";
        self.reject(Problem::new(ProblemCode::InvalidRequirement, detail), form)
    }

    fn missing(&self, form: RejectionForm) -> Rejection {
        self.reject(self.policy().headers.missing(Expected::ApiKey), form)
    }

    pub(crate) fn deny(
        &self,
        denial: Denial,
        requirement: &Requirement,
        record: Option<&KeyContext>,
        form: RejectionForm,
    ) -> Rejection {
        let mut problem = Problem::denied(denial);
        match denial {
            Denial::InsufficientScope => {
                problem.needed_scopes = requirement.scopes.as_slice().into();
                if let (Ok(needed), Some(record)) = (self.needed(requirement), record) {
                    let missing = self.policy().catalogue.names(needed.without(record.scopes));
                    problem.missing_scopes = missing.cloned().collect();
                }
            }
            // A default, which `with_rate` replaces with the time from the verdict.
            Denial::RateLimited => problem.retry_after = Some(1),
            _ => {}
        }
        self.reject(problem, form).because_of(denial)
    }

    fn reject(&self, problem: Problem, form: RejectionForm) -> Rejection {
        Rejection::new(problem, &self.policy().rejections, form)
    }
}
