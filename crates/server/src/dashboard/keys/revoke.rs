//! Revoking a key.

use actix_web::{get, post, web};
use askama::Template;
use tollkey_core::{Family, FieldErrors, Invalid, KeyId, Preconditions, Problem, text};
use tollkey_service::api_keys;

use super::{
    super::{
        fields::Fields,
        page::{self, Frame, see_other},
        session::SignedIn,
    },
    choice::application_of,
    view::{KeyView, SECTION},
};
use crate::{body::Body, rejection::HandlerResult, state::State, surfaces::parameters::path_id};

#[derive(Template)]
#[template(path = "key_revoke.html")]
struct RevokePage {
    frame: Frame,
    key: KeyView,
    fields: Fields,
}

impl RevokePage {
    async fn new(
        state: &State,
        visitor: &SignedIn,
        id: KeyId,
        fields: Fields,
    ) -> Result<Self, Problem> {
        let key = api_keys::get(&state.service, &visitor.by, &Family::ALL, id).await?;
        let applications = application_of(state, &visitor.by, &key).await?;
        let key = KeyView::new(&key, &applications, state.service.clock.now());
        Ok(Self {
            frame: Frame::of(visitor, SECTION, "Revoke key"),
            key,
            fields,
        })
    }
}

#[get("/keys/{id}/revoke")]
pub(in super::super) async fn ask_revoke(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    page::page(&RevokePage::new(&state, &visitor, path_id(&id)?, Fields::default()).await?)
}

#[post("/keys/{id}/revoke")]
pub(in super::super) async fn revoke(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
    body: Body,
) -> HandlerResult {
    let (by, id, fields) = (&visitor.by, path_id(&id)?, Fields::read(&body)?);
    let name = api_keys::get(&state.service, by, &Family::ALL, id)
        .await?
        .name;
    let mut checks = FieldErrors::default();
    let confirmed = if fields.confirms("confirm", &name) {
        Ok(())
    } else {
        Err(Invalid::new("is not the name of the key"))
    };
    let confirmed = checks.check("/confirm", confirmed);
    let reason = checks.check("/reason", text::optional(fields.filled("reason"), 255));
    let (Some(()), Some(reason)) = (confirmed, reason) else {
        let problem = checks.into_problem();
        return page::rejected(
            &problem,
            &RevokePage::new(&state, &visitor, id, fields.with_errors(&problem)).await?,
        );
    };
    api_keys::revoke(
        &state.service,
        by,
        &Family::ALL,
        id,
        reason,
        Preconditions::NONE,
    )
    .await?;
    Ok(see_other(&format!("/dashboard/keys/{id}?done=revoked")))
}
