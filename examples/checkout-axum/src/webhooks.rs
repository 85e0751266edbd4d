//! Webhook endpoints. `webhooks:read` lists and retrieves them; `webhooks:write` creates and deletes them.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tollkey_axum::VerifiedKey;

use crate::{
    events::Event,
    failure::Failure,
    store::{Store, add, new_id},
};

/// A webhook endpoint. It is stored and listed, but never called.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Webhook {
    id: String,
    mode: &'static str,
    url: String,
    created_at: Timestamp,
}

/// The body of `POST /webhooks`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewWebhook {
    url: String,
}

/// `GET /webhooks`, newest first.
pub async fn list(State(store): State<Store>, key: VerifiedKey) -> Json<Vec<Webhook>> {
    Json(store.read(&key, |data| data.webhooks.values().rev().cloned().collect()))
}

/// `GET /webhooks/{id}`.
pub async fn retrieve(
    State(store): State<Store>,
    key: VerifiedKey,
    Path(id): Path<String>,
) -> Result<Json<Webhook>, Failure> {
    store.read(&key, |data| {
        data.webhooks
            .get(&id)
            .cloned()
            .map(Json)
            .ok_or(Failure::NotFound)
    })
}

/// `POST /webhooks`.
pub async fn create(
    State(store): State<Store>,
    key: VerifiedKey,
    Json(new): Json<NewWebhook>,
) -> Result<(StatusCode, Json<Webhook>), Failure> {
    if !new.url.starts_with("https://") {
        return Err(Failure::Invalid("url must begin with https://"));
    }
    let webhook = Webhook {
        id: new_id("webhook"),
        mode: key.mode().as_str(),
        url: new.url,
        created_at: Timestamp::now(),
    };
    store.of(&key, |data| {
        add(&mut data.webhooks, &webhook.id, webhook.clone())?;
        data.record(Event::new("webhook.created", &webhook.id));
        Ok((StatusCode::CREATED, Json(webhook)))
    })
}

/// `DELETE /webhooks/{id}`.
pub async fn delete(
    State(store): State<Store>,
    key: VerifiedKey,
    Path(id): Path<String>,
) -> Result<StatusCode, Failure> {
    store.of(&key, |data| {
        data.webhooks.remove(&id).ok_or(Failure::NotFound)?;
        data.record(Event::new("webhook.deleted", &id));
        Ok(StatusCode::NO_CONTENT)
    })
}
