//! Creating a key, and the page that shows it once.

use actix_web::{
    HttpRequest, get,
    http::header::{HOST, ORIGIN},
    post, web,
};
use askama::Template;
use serde::Deserialize;
use tollkey_core::{ApiKey, KeyId, PlainKey, Problem};
use tollkey_service::{
    Outcome, accounts,
    api_keys::{self, CreatedKey},
    idempotency::CreationPermit,
};

use super::{
    super::{
        fields::Fields,
        once::{self, once},
        page::{self, Frame, can_be_corrected, see_other},
        session::SignedIn,
    },
    choice::choices,
    form::{self, KeyRequest, NewKeyForm},
    view::{KeyView, SECTION},
};
use crate::{
    body::{Body, Query},
    rejection::HandlerResult,
    state::State,
};

#[derive(Deserialize)]
struct NewFor {
    #[serde(default)]
    application: String,
}

#[derive(Template)]
#[template(path = "key_new.html")]
struct NewPage {
    frame: Frame,
    form: NewKeyForm,
    fields: Fields,
}

impl NewPage {
    async fn new(state: &State, visitor: &SignedIn, fields: Fields) -> Result<Self, Problem> {
        let model = accounts::get(&state.service, visitor.by.account_id.clone())
            .await?
            .operating_model;
        let chosen = fields.get("application").parse().ok();
        let form = NewKeyForm::new(state, model, choices(state, &visitor.by, chosen).await?);
        Ok(Self {
            frame: Frame::of(visitor, SECTION, "Create key"),
            form,
            fields,
        })
    }
}

#[get("/keys/new")]
pub(in super::super) async fn new(
    state: web::Data<State>,
    visitor: SignedIn,
    query: Query,
) -> HandlerResult {
    let NewFor { application } = query.read()?;
    let fields = NewKeyForm::untouched(&state, visitor.by.account_id.as_str(), &application);
    page::page(&NewPage::new(&state, &visitor, fields).await?)
}

#[derive(Template)]
#[template(path = "key_created.html")]
struct CreatedPage<'a> {
    frame: Frame,
    key: KeyView,
    text: &'a str,
    /// The URL of this server as the browser uses it.
    base: String,
    is_successor: bool,
}

#[post("/keys/new")]
pub(in super::super) async fn create(
    state: web::Data<State>,
    visitor: SignedIn,
    request: HttpRequest,
    body: Body,
) -> HandlerResult {
    let fields = Fields::read(&body)?;
    let by = &visitor.by;
    let run = async |creating: CreationPermit<KeyId>| {
        let KeyRequest {
            family,
            application,
            key,
        } = form::read(&fields, &state.service.catalogue, state.service.clock.now())?;
        match application {
            Some(id) => {
                api_keys::create_for_application(&state.service, by, id, key, creating).await
            }
            None => api_keys::create(&state.service, by, family, key, creating).await,
        }
    };
    let creator = (by.account_id.as_str(), &by.actor);
    let form = (request.path(), &fields, &body);
    match once(&state, creator, form, run).await {
        Ok(outcome) => respond(&state, &visitor, &request, outcome),
        Err(problem) if can_be_corrected(&problem) => {
            let fields = once::with_errors(&state, by.account_id.as_str(), fields, &problem);
            page::rejected(&problem, &NewPage::new(&state, &visitor, fields).await?)
        }
        Err(problem) => Err(problem.into()),
    }
}

/// Sending the form again redirects to the page of the key.
pub(super) fn respond(
    state: &State,
    visitor: &SignedIn,
    request: &HttpRequest,
    outcome: Outcome<CreatedKey, KeyId>,
) -> HandlerResult {
    match outcome {
        Outcome::Created(CreatedKey { key, text }) => {
            shown_once(state, visitor, request, &key, &text)
        }
        Outcome::Replayed(id) => Ok(see_other(&format!("/dashboard/keys/{id}?done=once"))),
        Outcome::ReplayedResponse(stored) => Ok(once::redirect(&stored)),
    }
}

fn shown_once(
    state: &State,
    visitor: &SignedIn,
    request: &HttpRequest,
    key: &ApiKey,
    text: &PlainKey,
) -> HandlerResult {
    // The origin that the browser uses, which a proxy may hide from the server. Browsers send it with a form.
    let header = |name| request.headers().get(name)?.to_str().ok();
    let base = header(ORIGIN)
        .filter(|origin| *origin != "null")
        .map(str::to_owned);
    let base = base.unwrap_or_else(|| format!("https://{}", header(HOST).unwrap_or_default()))
        + state.public_path.path("").as_str();
    page::page(&CreatedPage {
        frame: Frame::of(visitor, SECTION, "Key created"),
        key: KeyView::new(key, &[], state.service.clock.now()),
        text: text.expose(),
        base,
        is_successor: key.rotated_from.is_some(),
    })
}
