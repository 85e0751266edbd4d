//! Requests that may be sent again: `Idempotency-Key` on everything that creates.

use actix_web::{
    FromRequest, HttpRequest, HttpResponse,
    dev::Payload,
    http::{
        StatusCode,
        header::{self, HeaderName},
    },
};
use tollkey_core::{Problem, audit::Actor};

use super::account::under_api;
use crate::{
    body::Body,
    caller::Manager,
    edge::Refusal,
    service::idempotency::{self, Begun, Creating, IdempotencyKey, Place, Said},
    state::State,
};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The Idempotency-Key of a request, if it has one, and what it belongs to.
#[derive(Debug)]
pub struct Retry {
    key: Result<Option<IdempotencyKey>, Problem>,
    method: String,
    path: String,
}

impl FromRequest for Retry {
    type Error = Refusal;
    type Future = std::future::Ready<Result<Self, Refusal>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let path = under_api(request.match_info().as_str());
        std::future::ready(Ok(Self {
            key: key(request),
            method: request.method().to_string(),
            path,
        }))
    }
}

fn key(request: &HttpRequest) -> Result<Option<IdempotencyKey>, Problem> {
    let wrong = |rule: &str| Problem::field("Idempotency-Key", rule);
    let mut values = request.headers().get_all(IDEMPOTENCY_KEY);
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(wrong("must not be repeated"));
    }
    let text = value.to_str().unwrap_or_default();
    IdempotencyKey::parse(text)
        .map(Some)
        .map_err(|rule| wrong(&rule.to_string()))
}

impl Retry {
    /// Gives the kept answer, or does what is to be done.
    ///
    /// # Errors
    /// Those of [`idempotency::begin`], of an unfit header, and of what is done.
    pub async fn once(
        self,
        state: &State,
        by: &Manager,
        body: &Body,
        make: impl AsyncFnOnce(Creating) -> Result<Said, Problem>,
    ) -> Result<Said, Problem> {
        let mode = by.key.as_ref().map(|key| key.key.mode);
        self.once_in(state, (by.account_id.as_str(), &by.actor, mode), body, make)
            .await
    }

    /// [`Retry::once`] for what belongs to no account.
    ///
    /// # Errors
    /// As there.
    pub async fn once_without_account(
        self,
        state: &State,
        by: &Actor,
        body: &Body,
        make: impl AsyncFnOnce(Creating) -> Result<Said, Problem>,
    ) -> Result<Said, Problem> {
        self.once_in(state, ("", by, None), body, make).await
    }

    async fn once_in(
        self,
        state: &State,
        (account, actor, mode): (&str, &Actor, Option<tollkey_core::Mode>),
        body: &Body,
        make: impl AsyncFnOnce(Creating) -> Result<Said, Problem>,
    ) -> Result<Said, Problem> {
        let place = Place {
            account,
            actor,
            mode,
            method: &self.method,
            path: &self.path,
        };
        match idempotency::begin(state, place, self.key?, body.bytes()?).await? {
            Begun::Replay(said) => Ok(said),
            Begun::Fresh(creating) => make(creating).await,
        }
    }
}

/// An answer as its surface prints it: `body` is what was said, wrapped or not.
pub fn respond(said: &Said, body: String) -> HttpResponse {
    let status = StatusCode::from_u16(said.answered.status).unwrap_or(StatusCode::CREATED);
    let mut response = HttpResponse::build(status);
    if let Some(location) = &said.answered.location {
        response.insert_header((header::LOCATION, location.as_str()));
    }
    if said.replayed {
        response.insert_header((IDEMPOTENT_REPLAYED, "true"));
    }
    response
        .content_type(header::ContentType::json())
        .body(body)
}

/// [`respond`] for the surfaces that wrap nothing.
pub fn plain(said: &Said) -> HttpResponse {
    respond(said, said.answered.body.expose().to_owned())
}
