//! The page of a key.

use actix_web::{get, web};
use askama::Template;
use tollkey_core::{Family, KeyId, Problem, Status, audit::Action, time::day};
use tollkey_service::{RequestActor, api_keys, audit};

use super::{
    super::{
        audit::EntryView,
        page::{self, Done, Frame},
        session::SignedIn,
    },
    choice::application_of,
    view::{KeyView, Usage},
};
use crate::{body::Query, rejection::HandlerResult, state::State, surfaces::parameters::path_id};

/// Days of usage on the page, including today.
const USAGE_DAYS: i32 = 30;
const ENTRIES: u32 = 20;

#[derive(Template)]
#[template(path = "key.html")]
struct KeyPage {
    frame: Frame,
    key: KeyView,
    usage: Usage,
    entries: Vec<EntryView>,
    /// The entry of the rotation that created this key, and its predecessor. The entry's target is the predecessor.
    creation: Option<(EntryView, KeyView)>,
    successor: Option<KeyView>,
}

#[get("/keys/{id}")]
pub(in super::super) async fn show(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
    query: Query,
) -> HandlerResult {
    let Done { done } = query.read()?;
    let (by, id) = (&visitor.by, path_id(&id)?);
    let key = api_keys::get(&state.service, by, &Family::ALL, id).await?;
    let now = state.service.clock.now();
    let today = day(now);
    let usage = api_keys::usage(&state.service, by, &key, today - USAGE_DAYS + 1).await?;
    let filter = audit::Filter {
        limit: ENTRIES,
        target_id: Some(id.to_string()),
        ..audit::Filter::default()
    };
    let found = audit::list(&state.service, by, filter).await?;
    let creation = match key.rotated_from {
        Some(predecessor) if found.next.is_none() => creation_of(&state, by, predecessor).await?,
        _ => None,
    };
    let applications = application_of(&state, by, &key).await?;
    // A notice from the URL is only shown if it is true, because anyone can create such a link.
    let notices: &[&str] = match key.status(now) {
        Status::Revoked => &["once", "revoked"],
        Status::Suspended => &["once", "suspended"],
        Status::Active => &["once", "resumed"],
        _ => &["once"],
    };
    let successor = match key.rotated_to {
        Some(successor) => Some(api_keys::get(&state.service, by, &Family::ALL, successor).await?),
        None => None,
    };
    page::page(&KeyPage {
        frame: Frame::of(&visitor, super::view::SECTION, key.name.clone())
            .done(done.as_deref(), notices),
        key: KeyView::new(&key, &applications, now),
        usage: Usage::new(&usage, today, USAGE_DAYS),
        entries: found.entries.iter().map(EntryView::from).collect(),
        creation,
        successor: successor.map(|key| KeyView::new(&key, &applications, now)),
    })
}

async fn creation_of(
    state: &State,
    by: &RequestActor,
    id: KeyId,
) -> Result<Option<(EntryView, KeyView)>, Problem> {
    let rotation = audit::Filter {
        limit: 1,
        action: Some(Action::ApiKeyRotated),
        target_id: Some(id.to_string()),
        ..audit::Filter::default()
    };
    let found = audit::list(&state.service, by, rotation).await?;
    let Some(entry) = found.entries.first() else {
        return Ok(None);
    };
    let predecessor = api_keys::get(&state.service, by, &Family::ALL, id).await?;
    Ok(Some((
        EntryView::from(entry),
        KeyView::new(&predecessor, &[], state.service.clock.now()),
    )))
}
