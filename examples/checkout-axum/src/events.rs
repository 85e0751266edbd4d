//! Events: what happened to the account's things. `events:read` lists and retrieves them.

use axum::{
    Json,
    extract::{Path, State},
};
use jiff::Timestamp;
use serde::Serialize;
use tollkey_axum::VerifiedKey;

use crate::{
    failure::Failure,
    store::{Store, new_id},
};

/// Something that happened.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Its id.
    pub id: String,
    r#type: &'static str,
    object_id: String,
    created_at: Timestamp,
}

impl Event {
    /// That this happened just now: `link.created`, `customer.updated`, …
    #[must_use]
    pub fn new(r#type: &'static str, object_id: &str) -> Self {
        Self { id: new_id("event"), r#type, object_id: object_id.to_owned(), created_at: Timestamp::now() }
    }
}

/// `GET /events`, newest first.
pub async fn list(State(store): State<Store>, key: VerifiedKey) -> Json<Vec<Event>> {
    Json(store.read(&key, |data| data.events.values().rev().cloned().collect()))
}

/// `GET /events/{id}`.
pub async fn retrieve(
    State(store): State<Store>,
    key: VerifiedKey,
    Path(id): Path<String>,
) -> Result<Json<Event>, Failure> {
    store.read(&key, |data| data.events.get(&id).cloned().map(Json).ok_or(Failure::NotFound))
}
