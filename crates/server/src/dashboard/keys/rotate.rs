//! Rotating a key.

use actix_web::{HttpRequest, get, post, web};
use askama::Template;
use tollkey_core::{KeyId, Preconditions, Problem, api_key::TransitionError};
use tollkey_service::{api_keys, idempotency::CreationPermit};

use super::{
    super::{
        fields::Fields,
        once::{self, once},
        page::{self, Frame, can_be_corrected},
        session::SignedIn,
    },
    create::respond,
    form,
    view::{KeyView, SECTION},
};
use crate::{body::Body, rejection::HandlerResult, state::State, surfaces::parameters::path_id};

#[derive(Template)]
#[template(path = "key_rotate.html")]
struct RotatePage {
    frame: Frame,
    key: KeyView,
    /// Why the key cannot be rotated; then the page has no form.
    obstacle: Option<TransitionError>,
    fields: Fields,
}

impl RotatePage {
    async fn new(
        state: &State,
        visitor: &SignedIn,
        id: KeyId,
        fields: Fields,
    ) -> Result<Self, Problem> {
        let key = api_keys::get(&state.service, &visitor.by, api_keys::COMMERCE, id).await?;
        let now = state.service.clock.now();
        let (obstacle, key) = (key.check_rotatable(now).err(), KeyView::new(&key, &[], now));
        Ok(Self {
            frame: Frame::of(visitor, SECTION, "Rotate key"),
            key,
            obstacle,
            fields,
        })
    }
}

#[get("/keys/{id}/rotate")]
pub(in super::super) async fn ask_rotate(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    let fields = once::untouched(&state, visitor.by.account_id.as_str()).with("overlap", "86400");
    page::page(&RotatePage::new(&state, &visitor, path_id(&id)?, fields).await?)
}

#[post("/keys/{id}/rotate")]
pub(in super::super) async fn rotate(
    state: web::Data<State>,
    visitor: SignedIn,
    request: HttpRequest,
    id: web::Path<String>,
    body: Body,
) -> HandlerResult {
    let (by, id, fields) = (&visitor.by, path_id(&id)?, Fields::read(&body)?);
    let run = async |creating: CreationPermit<KeyId>| {
        let overlap =
            form::overlap(&fields).map_err(|rule| Problem::field("/overlap", rule.to_string()))?;
        api_keys::rotate(
            &state.service,
            by,
            id,
            overlap,
            Preconditions::NONE,
            creating,
        )
        .await
    };
    let creator = (by.account_id.as_str(), &by.actor);
    let form = (request.path(), &fields, &body);
    match once(&state, creator, form, run).await {
        Ok(outcome) => respond(&state, &visitor, &request, outcome),
        Err(problem) if can_be_corrected(&problem) => {
            let fields = once::with_errors(&state, by.account_id.as_str(), fields, &problem);
            page::rejected(
                &problem,
                &RotatePage::new(&state, &visitor, id, fields).await?,
            )
        }
        Err(problem) => Err(problem.into()),
    }
}
