//! Payment links. `links:read` lists and retrieves them; `links:write` creates, updates and deletes them.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tollkey_axum::VerifiedKey;

use crate::{
    amount::Amount,
    events::Event,
    failure::Failure,
    store::{Store, add, new_id},
};

/// A payment link.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Link {
    id: String,
    mode: &'static str,
    amount: Amount,
    description: Option<String>,
    active: bool,
    created_at: Timestamp,
}

/// The body of `POST /links`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewLink {
    amount: Amount,
    description: Option<String>,
}

/// The body of `PATCH /links/{id}`; absent fields do not change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkUpdate {
    amount: Option<Amount>,
    description: Option<String>,
    active: Option<bool>,
}

/// `GET /links`, newest first.
pub async fn list(State(store): State<Store>, key: VerifiedKey) -> Json<Vec<Link>> {
    Json(store.read(&key, |data| data.links.values().rev().cloned().collect()))
}

/// `GET /links/{id}`.
pub async fn retrieve(
    State(store): State<Store>,
    key: VerifiedKey,
    Path(id): Path<String>,
) -> Result<Json<Link>, Failure> {
    store.read(&key, |data| {
        data.links
            .get(&id)
            .cloned()
            .map(Json)
            .ok_or(Failure::NotFound)
    })
}

/// `POST /links`.
pub async fn create(
    State(store): State<Store>,
    key: VerifiedKey,
    Json(new): Json<NewLink>,
) -> Result<(StatusCode, Json<Link>), Failure> {
    new.amount.check()?;
    let link = Link {
        id: new_id("link"),
        mode: key.mode().as_str(),
        amount: new.amount,
        description: new.description,
        active: true,
        created_at: Timestamp::now(),
    };
    store.of(&key, |data| {
        add(&mut data.links, &link.id, link.clone())?;
        data.record(Event::new("link.created", &link.id));
        Ok((StatusCode::CREATED, Json(link)))
    })
}

/// `PATCH /links/{id}`.
pub async fn update(
    State(store): State<Store>,
    key: VerifiedKey,
    Path(id): Path<String>,
    Json(update): Json<LinkUpdate>,
) -> Result<Json<Link>, Failure> {
    if let Some(amount) = &update.amount {
        amount.check()?;
    }
    store.of(&key, |data| {
        let link = data.links.get_mut(&id).ok_or(Failure::NotFound)?;
        if let Some(amount) = update.amount {
            link.amount = amount;
        }
        if let Some(description) = update.description {
            link.description = Some(description);
        }
        if let Some(active) = update.active {
            link.active = active;
        }
        let link = link.clone();
        data.record(Event::new("link.updated", &id));
        Ok(Json(link))
    })
}

/// `DELETE /links/{id}`.
pub async fn delete(
    State(store): State<Store>,
    key: VerifiedKey,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    store.of(&key, |data| {
        data.links.remove(&id).ok_or(Failure::NotFound)?;
        data.record(Event::new("link.deleted", &id));
        Ok(StatusCode::NO_CONTENT)
    })
}
