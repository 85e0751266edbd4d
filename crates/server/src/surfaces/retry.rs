//! The header `Idempotency-Key` of requests that create a resource.

use actix_web::{
    FromRequest, HttpRequest, HttpResponse,
    dev::Payload,
    http::{
        StatusCode,
        header::{self, HeaderMap, HeaderName},
    },
    web,
};
use serde::Serialize;
use tollkey_core::{EntityTag, Problem, audit::Actor};
use tollkey_service::{
    Outcome, RequestActor,
    idempotency::{self, BeginOutcome, CreationPermit, IdempotencyKey, Recorded, RequestTarget},
};
use zeroize::Zeroizing;

use crate::{body::Body, rejection::Rejection, state::State, surface::Surfaces};

const IDEMPOTENCY_KEY: &str = "Idempotency-Key";
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The Idempotency-Key of a request, if any, with the method and path that it applies to.
#[derive(Debug)]
pub struct IdempotencyHeader {
    key: Result<Option<IdempotencyKey>, Problem>,
    method: String,
    path: String,
}

impl FromRequest for IdempotencyHeader {
    type Error = Rejection;
    type Future = std::future::Ready<Result<Self, Rejection>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let Some(surfaces) = request.app_data::<web::Data<Surfaces>>() else {
            return std::future::ready(Err(Problem::internal().into()));
        };
        let path = request.match_info().as_str();
        let alias = surfaces.of(path).idempotency_alias;
        let path = surfaces.documented(path);
        std::future::ready(Ok(Self {
            key: key(request.headers(), alias),
            method: request.method().to_string(),
            path,
        }))
    }
}

fn key(
    headers: &HeaderMap,
    alias: Option<&'static str>,
) -> Result<Option<IdempotencyKey>, Problem> {
    let key = header_key(headers, IDEMPOTENCY_KEY)?;
    let Some(alias) = alias else {
        return Ok(key);
    };
    match (key, header_key(headers, alias)?) {
        (Some(key), Some(other)) if key != other => Err(Problem::field(
            alias,
            "must equal Idempotency-Key if both are sent; send one of them",
        )),
        (key, other) => Ok(key.or(other)),
    }
}

fn header_key(headers: &HeaderMap, name: &'static str) -> Result<Option<IdempotencyKey>, Problem> {
    let wrong = |rule: &str| Problem::field(name, rule);
    let mut values = headers.get_all(name);
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

impl IdempotencyHeader {
    /// Returns the outcome of an earlier request with the same Idempotency-Key, or that of `create`.
    pub async fn once<T: Recorded<T>>(
        self,
        state: &State,
        by: &RequestActor,
        body: &Body,
        create: impl AsyncFnOnce(CreationPermit<T>) -> Result<Outcome<T>, Problem>,
    ) -> Result<Outcome<T>, Problem> {
        let mode = by.parent.as_ref().map(|key| key.key.mode);
        self.once_in(
            state,
            (by.account_id.as_str(), &by.actor, mode),
            body,
            create,
        )
        .await
    }

    pub async fn once_without_account<T: Recorded<T>>(
        self,
        state: &State,
        by: &Actor,
        body: &Body,
        create: impl AsyncFnOnce(CreationPermit<T>) -> Result<Outcome<T>, Problem>,
    ) -> Result<Outcome<T>, Problem> {
        self.once_in(state, ("", by, None), body, create).await
    }

    async fn once_in<T: Recorded<T>>(
        self,
        state: &State,
        (account, actor, mode): (&str, &Actor, Option<tollkey_core::Mode>),
        body: &Body,
        create: impl AsyncFnOnce(CreationPermit<T>) -> Result<Outcome<T>, Problem>,
    ) -> Result<Outcome<T>, Problem> {
        let target = RequestTarget {
            account,
            actor,
            mode,
            method: &self.method,
            path: &self.path,
        };
        match idempotency::begin(&state.service, target, self.key?, body.bytes()?).await? {
            BeginOutcome::Replay(outcome) => Ok(outcome),
            BeginOutcome::Fresh(creating) => create(creating).await,
        }
    }
}

pub struct Representation<B> {
    /// The value of `Location`, for operations that document this header.
    pub location: Option<String>,
    /// The tag of the created resource. A replay has the tag of the first response.
    pub tag: EntityTag,
    pub body: B,
}

/// `show` builds the representation of the resource, and `wrap` turns its JSON into the body.
pub fn respond<T, B: Serialize>(
    outcome: Outcome<T>,
    show: impl FnOnce(&T) -> Representation<B>,
    wrap: impl FnOnce(&str) -> Result<String, Problem>,
) -> Result<HttpResponse, Rejection> {
    let replayed = !matches!(outcome, Outcome::Created(_));
    let (status, location, tag, body) = match outcome {
        Outcome::Created(created) | Outcome::Replayed(created) => {
            let Representation {
                location,
                tag,
                body,
            } = show(&created);
            let json =
                Zeroizing::new(serde_json::to_string(&body).map_err(|_| Problem::internal())?);
            (StatusCode::CREATED, location, Some(tag), wrap(&json)?)
        }
        Outcome::ReplayedResponse(stored) => {
            let status = StatusCode::from_u16(stored.status).unwrap_or(StatusCode::CREATED);
            (status, stored.location, None, wrap(stored.body.expose())?)
        }
    };
    let mut response = HttpResponse::build(status);
    if let Some(location) = location {
        response.insert_header((header::LOCATION, location));
    }
    if let Some(tag) = tag {
        response.insert_header((header::ETAG, tag.to_string()));
    }
    if replayed {
        response.insert_header((IDEMPOTENT_REPLAYED, "true"));
    }
    Ok(response
        .content_type(header::ContentType::json())
        .body(body))
}

/// The body is the JSON of the resource.
pub fn plain<T, B: Serialize>(
    outcome: Outcome<T>,
    show: impl FnOnce(&T) -> Representation<B>,
) -> Result<HttpResponse, Rejection> {
    respond(outcome, show, |json| Ok(json.to_owned()))
}
