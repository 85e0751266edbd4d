//! The key that a request was admitted with.

use std::{fmt, sync::Arc};

use serde_json::{Map, Value};
use tollkey_core::{Denial, Family, KeyContext, Mode, Scope, Timestamp, metadata::Metadata};
use tollkey_verifier::Reservation;

use crate::{Guard, Rejection, RejectionForm, RequestHead, Requirement};

/// The key that a request was admitted with: an extractor of axum and of actix-web. Cheap to clone.
///
/// The request counts as a use of the key when it is [committed](crate::Admission::commit), which a layer
/// does when the handler responds, or when the last clone is dropped.
#[derive(Clone)]
pub struct VerifiedKey(pub(crate) Arc<AdmittedKey>);

pub(crate) struct AdmittedKey {
    pub(crate) guard: Guard,
    pub(crate) reservation: Reservation,
    pub(crate) header: &'static str,
    pub(crate) merchant: Option<String>,
    pub(crate) form: RejectionForm,
}

impl VerifiedKey {
    pub(crate) fn guard(&self) -> &Guard {
        &self.0.guard
    }

    fn record(&self) -> &KeyContext {
        self.0.reservation.key()
    }

    /// Returns the ID of the key.
    #[must_use]
    pub fn id(&self) -> String {
        self.record().key.id.to_string()
    }

    /// Returns the ID of the account that owns the key.
    #[must_use]
    pub fn account_id(&self) -> &str {
        self.record().key.account_id.as_str()
    }

    /// Returns the ID of the application, for a key of an application.
    #[must_use]
    pub fn application_id(&self) -> Option<String> {
        self.record().key.application_id.map(|id| id.to_string())
    }

    /// Returns the name of the key.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.record().key.name
    }

    /// Returns the family: commerce, application, secret or publishable.
    #[must_use]
    pub fn family(&self) -> Family {
        self.record().key.family
    }

    /// Returns the mode: live or test.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.record().key.mode
    }

    /// Returns the scopes that the key satisfies, without those that this guard does not know.
    pub fn scopes(&self) -> impl Iterator<Item = &Scope> {
        self.0.guard.policy().catalogue.names(self.record().scopes)
    }

    /// Returns whether the key satisfies a scope.
    #[must_use]
    pub fn has_scope(&self, scope: &Scope) -> bool {
        self.scopes().any(|own| own == scope)
    }

    /// Returns the merchant that the request names, if any. The key is authorized for this merchant.
    #[must_use]
    pub fn merchant(&self) -> Option<&str> {
        self.0.merchant.as_deref()
    }

    /// Returns the merchants that the key is restricted to, or `None` for all merchants.
    #[must_use]
    pub fn merchants(&self) -> Option<&[String]> {
        self.record().key.restrictions.merchants.as_deref()
    }

    /// Returns when the key expires, or `None` if it does not expire.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.record().key.restrictions.expires_at
    }

    /// Returns the metadata of the key. Each call parses it, so store the result.
    #[must_use]
    pub fn metadata(&self) -> Option<Map<String, Value>> {
        self.record().key.metadata.as_ref().map(Metadata::object)
    }

    /// Checks a further requirement in a handler: a mode, scopes, or a merchant
    /// ([`MerchantSource::id`](crate::MerchantSource::id)). The layer has already authorized the client IP
    /// address and the route. The handler returns the rejection as its error. A rejected request does not
    /// count as a use of the key or against its rate limit. To check without rejecting, see
    /// [`can`](Self::can).
    ///
    /// ```
    /// # use tollkey_middleware::{MerchantSource, Rejection, Requirement, VerifiedKey};
    /// fn pay(key: &VerifiedKey, merchant: &str) -> Result<(), Rejection> {
    ///     key.require("sessions:write")?;
    ///     key.require(Requirement::any().merchant(MerchantSource::id(merchant)))?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// The [`Rejection`] to respond with. A requirement whose merchant is read from the request cannot be
    /// checked here: the request is rejected, and an error is logged.
    pub fn require(&self, requirement: impl Into<Requirement>) -> Result<(), Rejection> {
        let requirement = requirement.into();
        let decision = self.decide_here(&requirement);
        self.rejected_unless(decision, &requirement)
    }

    /// Returns whether [`require`](Self::require) would succeed. It does not reject the request, which counts
    /// as a use of the key even if the result is `false`.
    #[must_use]
    pub fn can(&self, requirement: impl Into<Requirement>) -> bool {
        self.decide_here(&requirement.into()) == Some(Ok(()))
    }

    /// Rejects the request because of a rule of the application. The response is the same as from the layer.
    /// The request counts as denied, and not against the key's rate limit. With [`Denial::RateLimited`], the
    /// response has `Retry-After: 1`.
    #[must_use]
    pub fn reject(&self, denial: Denial) -> Rejection {
        self.0.reservation.reject(denial);
        let (record, form) = (Some(self.record()), self.0.form);
        self.guard().deny(denial, &Requirement::any(), record, form)
    }

    /// Waits until the key can no longer be used for any request: it is revoked, expired or suspended, or its
    /// application is disabled. Returns the denial. Use it to end responses that continue after the request
    /// was authorized, such as WebSockets and event streams. It resolves as soon as new requests with the key
    /// are rejected. It does not resolve when scopes or other restrictions change, or while the server does
    /// not respond.
    ///
    /// ```
    /// # async fn example(key: tollkey_middleware::VerifiedKey, next_event: impl Future<Output = String>) {
    /// tokio::select! {
    ///     event = next_event => println!("{event}"),
    ///     denial = key.revoked() => println!("the stream ends: {}", denial.code()),
    /// }
    /// # }
    /// ```
    pub async fn revoked(&self) -> Denial {
        self.guard().until_unusable(self.0.reservation.key()).await
    }

    /// Returns the lower-case name of the header with the key.
    #[must_use]
    pub fn credential_header(&self) -> &'static str {
        self.0.header
    }

    /// Returns the fields `RateLimit-Policy` and `RateLimit` for the response, if the key has a limit.
    pub(crate) fn rate_limit_fields(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.0
            .reservation
            .rate()
            .into_iter()
            .flat_map(|rate| crate::rejection::rate_fields(rate, None))
    }

    /// Checks a further requirement, as [`require`](Self::require) does, and reads its merchant from the request.
    ///
    /// # Errors
    /// The [`Rejection`] to respond with.
    pub(crate) fn require_of(
        &self,
        request: &RequestHead<'_>,
        requirement: &Requirement,
    ) -> Result<(), Rejection> {
        let decision = match &requirement.merchant {
            None => self.decide(requirement, self.merchant()),
            Some(source) => self.decide(requirement, source.of(request).as_deref()),
        };
        self.rejected_unless(decision, requirement)
    }

    /// Decides a requirement that does not need the request.
    fn decide_here(&self, requirement: &Requirement) -> Option<Result<(), Denial>> {
        let Some(source) = &requirement.merchant else {
            return self.decide(requirement, self.merchant());
        };
        let merchant = source.without_request();
        if merchant.is_none() {
            tracing::error!(
                ?source,
                "a handler requires the merchant of a request; use MerchantSource::id there"
            );
        }
        self.decide(requirement, Some(merchant?))
    }

    /// Decides a requirement. Returns `None` if it cannot be decided; the cause has been logged.
    fn decide(
        &self,
        requirement: &Requirement,
        merchant: Option<&str>,
    ) -> Option<Result<(), Denial>> {
        let access = self.guard().need_of_key(requirement, merchant)?;
        Some(self.0.reservation.decide_requirements(&access))
    }

    fn rejected_unless(
        &self,
        decision: Option<Result<(), Denial>>,
        requirement: &Requirement,
    ) -> Result<(), Rejection> {
        let (guard, form) = (self.guard(), self.0.form);
        match decision {
            Some(Ok(())) => Ok(()),
            Some(Err(denial)) => {
                self.0.reservation.reject(denial);
                Err(guard.deny(denial, requirement, Some(self.record()), form))
            }
            None => {
                self.cancel();
                Err(guard.invalid_requirement(form))
            }
        }
    }

    /// Counts the request as a use of the key. Returns `false` if it was counted or rejected before.
    pub(crate) fn commit(&self) -> bool {
        self.0.reservation.commit()
    }

    /// Ends the reservation without counting the request.
    pub(crate) fn cancel(&self) {
        self.0.reservation.cancel();
    }
}

impl fmt::Debug for VerifiedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.record().key;
        f.debug_struct("VerifiedKey")
            .field("id", &key.id)
            .field("account_id", &key.account_id.as_str())
            .field("family", &key.family)
            .field("mode", &key.mode)
            .finish_non_exhaustive()
    }
}
