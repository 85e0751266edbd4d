//! The key that a request was admitted with.

use std::{fmt, sync::Arc};

use serde_json::{Map, Value};
use tollkey_core::{Denial, Family, Mode, Record, Scope, Timestamp};
use tollkey_verifier::Reservation;

use crate::{Guard, Rejection, RejectionForm, RequestHead, Requirement};

/// The key that a request was admitted with: an extractor of axum and of actix-web. Cheap to clone.
///
/// The request counts as a use of the key when it is [concluded](crate::Admission::conclude), which a layer does as soon as there
/// is a response, or when the last clone is dropped.
#[derive(Clone)]
pub struct VerifiedKey(Arc<Inner>);

struct Inner {
    guard: Guard,
    reservation: Reservation,
    header: &'static str,
    merchant: Option<String>,
    form: RejectionForm,
}

impl VerifiedKey {
    pub(crate) fn new(
        guard: Guard,
        reservation: Reservation,
        header: &'static str,
        merchant: Option<String>,
        form: RejectionForm,
    ) -> Self {
        Self(Arc::new(Inner {
            guard,
            reservation,
            header,
            merchant,
            form,
        }))
    }

    pub(crate) fn guard(&self) -> &Guard {
        &self.0.guard
    }

    fn record(&self) -> &Record {
        self.0.reservation.key()
    }

    /// The ID.
    #[must_use]
    pub fn id(&self) -> String {
        self.record().key.id.to_string()
    }

    /// The account that owns it.
    #[must_use]
    pub fn account_id(&self) -> &str {
        self.record().key.account_id.as_str()
    }

    /// The application, for a key of an application.
    #[must_use]
    pub fn application_id(&self) -> Option<String> {
        self.record().key.application_id.map(|id| id.to_string())
    }

    /// The name that it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.record().key.name
    }

    /// The family: commerce, application, secret or publishable.
    #[must_use]
    pub fn family(&self) -> Family {
        self.record().key.family
    }

    /// Live or test.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.record().key.mode
    }

    /// The scopes it satisfies, of those that this guard knows.
    pub fn scopes(&self) -> impl Iterator<Item = &Scope> {
        self.0.guard.policy().catalogue.names(self.record().scopes)
    }

    /// Whether it satisfies that scope.
    #[must_use]
    pub fn has_scope(&self, scope: &Scope) -> bool {
        self.scopes().any(|own| own == scope)
    }

    /// The merchant that the request is about, where it names one. A key that is bound to merchants may be used for this one.
    #[must_use]
    pub fn merchant(&self) -> Option<&str> {
        self.0.merchant.as_deref()
    }

    /// The merchants that it is bound to; `None` is any.
    #[must_use]
    pub fn merchants(&self) -> Option<&[String]> {
        self.record().key.grants.merchants.as_deref()
    }

    /// When it expires; `None` is never.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.record().key.grants.expires_at
    }

    /// The metadata that was attached to it. Parsed by each call: keep the result.
    #[must_use]
    pub fn metadata(&self) -> Option<Map<String, Value>> {
        self.record()
            .key
            .metadata
            .as_ref()
            .map(tollkey_core::metadata::Metadata::object)
    }

    /// Requires more of the key, in a handler: a mode, scopes, a merchant ([`Merchant::id`](crate::Merchant::id)). The client's
    /// address and the route were authorized by the layer. A rejection takes nothing from the key's rate limit, and is no
    /// use of the key; the handler returns it as its error. To ask without rejecting, see [`can`](Self::can).
    ///
    /// ```
    /// # use tollkey_middleware::{Merchant, Rejection, Requirement, VerifiedKey};
    /// fn pay(key: &VerifiedKey, merchant: &str) -> Result<(), Rejection> {
    ///     key.require("sessions:write")?;
    ///     key.require(Requirement::any().merchant(Merchant::id(merchant)))?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Errors
    /// The [`Rejection`] to respond with. A requirement whose merchant stands in the request cannot be checked here: it is
    /// rejected, with an error in the log.
    pub fn require(&self, requirement: impl Into<Requirement>) -> Result<(), Rejection> {
        let requirement = requirement.into();
        let decision = self.decide_here(&requirement);
        self.rejected_unless(decision, &requirement)
    }

    /// Whether the key meets a requirement, as [`require`](Self::require) decides it, for a handler that continues either
    /// way: it rejects nothing, and the request counts as a use of the key.
    #[must_use]
    pub fn can(&self, requirement: impl Into<Requirement>) -> bool {
        self.decide_here(&requirement.into()) == Some(Ok(()))
    }

    /// Rejects the request with this denial, for a rule of the application: with the response that the layer would send. The
    /// request counts as denied, and gives back what it took from the key's rate limit. With [`Denial::RateLimited`] the response asks to retry after a second.
    #[must_use]
    pub fn reject(&self, denial: Denial) -> Rejection {
        self.0.reservation.reject(denial);
        self.guard().deny(
            denial,
            &Requirement::any(),
            Some(self.record()),
            self.0.form,
        )
    }

    /// Waits until the key can no longer be used for any request: it is revoked, expired or suspended, or its application is
    /// disabled. Returns which. For responses that continue after the request was authorized, such as WebSockets and event
    /// streams: end them when it resolves. It resolves as fast as a new request would be rejected, and never for a change of
    /// scopes or other restrictions. While the server cannot be reached, it keeps waiting.
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

    /// The name of the header that held the key, in lower case.
    #[must_use]
    pub fn credential_header(&self) -> &'static str {
        self.0.header
    }

    /// The fields `RateLimit-Policy` and `RateLimit` for the response, where the key has a limit.
    pub(crate) fn rate_limit_fields(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.0
            .reservation
            .rate()
            .into_iter()
            .flat_map(|rate| crate::rejection::rate_fields(rate, None))
    }

    /// [`require`](Self::require) with the request at hand.
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

    /// Decides a requirement without a request.
    fn decide_here(&self, requirement: &Requirement) -> Option<Result<(), Denial>> {
        let Some(source) = &requirement.merchant else {
            return self.decide(requirement, self.merchant());
        };
        let merchant = source.without_request();
        if merchant.is_none() {
            tracing::error!(
                ?source,
                "a handler requires the merchant of a request; use Merchant::id there"
            );
        }
        self.decide(requirement, Some(merchant?))
    }

    /// Decides a requirement; `None` if it cannot be, and the log says why.
    fn decide(
        &self,
        requirement: &Requirement,
        merchant: Option<&str>,
    ) -> Option<Result<(), Denial>> {
        let need = self.guard().need_of_key(requirement, merchant)?;
        Some(self.0.reservation.decide_further(&need))
    }

    /// Ends the request with a rejection unless the decision allows it.
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
                Err(guard.misconfigured(form))
            }
        }
    }

    /// Ends the request: it was a use of the key. Returns `false` if the request had ended before.
    pub(crate) fn commit(&self) -> bool {
        self.0.reservation.commit()
    }

    /// Ends the request as if the key had not been presented.
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
