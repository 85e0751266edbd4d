//! Checkout sessions. `sessions:read` lists and retrieves them; `sessions:write` creates them.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tollkey_axum::VerifiedKey;

use crate::{
    amount::Amount,
    events::Event,
    failure::Failure,
    store::{Store, add, new_id},
};

/// A checkout session. It stays open, because this example takes no payments.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    id: String,
    mode: &'static str,
    status: &'static str,
    amount: Amount,
    success_url: String,
    metadata: Map<String, Value>,
    created_at: Timestamp,
}

/// The body of `POST /sessions`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NewSession {
    amount: Amount,
    success_url: String,
    #[serde(default)]
    metadata: Map<String, Value>,
}

/// `GET /sessions`, newest first.
pub async fn list(State(store): State<Store>, key: VerifiedKey) -> Json<Vec<Session>> {
    Json(store.read(&key, |data| data.sessions.values().rev().cloned().collect()))
}

/// `GET /sessions/{id}`.
pub async fn retrieve(
    State(store): State<Store>,
    key: VerifiedKey,
    Path(id): Path<String>,
) -> Result<Json<Session>, Failure> {
    store.read(&key, |data| {
        data.sessions
            .get(&id)
            .cloned()
            .map(Json)
            .ok_or(Failure::NotFound)
    })
}

/// `POST /sessions`.
pub async fn create(
    State(store): State<Store>,
    key: VerifiedKey,
    Json(new): Json<NewSession>,
) -> Result<(StatusCode, Json<Session>), Failure> {
    new.amount.check()?;
    if !new.success_url.starts_with("https://") {
        return Err(Failure::Invalid("successUrl must begin with https://"));
    }
    let session = Session {
        id: new_id("session"),
        mode: key.mode().as_str(),
        status: "open",
        amount: new.amount,
        success_url: new.success_url,
        metadata: new.metadata,
        created_at: Timestamp::now(),
    };
    store.of(&key, |data| {
        add(&mut data.sessions, &session.id, session.clone())?;
        data.record(Event::new("session.created", &session.id));
        Ok((StatusCode::CREATED, Json(session)))
    })
}
