//! Events: changes of the account's objects. `events:read` lists and retrieves them, and streams them as they happen.

use axum::{
    Error, Json,
    extract::{Path, State},
    response::sse::{self, KeepAlive, Sse},
};
use futures_util::{Stream, stream};
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::broadcast;
use tollkey_axum::VerifiedKey;

use crate::{
    failure::Failure,
    store::{Store, new_id},
};

/// An event.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// The ID.
    pub id: String,
    r#type: &'static str,
    object_id: String,
    created_at: Timestamp,
}

impl Event {
    /// Creates an event of the current time: `link.created`, `customer.updated`, …
    #[must_use]
    pub fn new(r#type: &'static str, object_id: &str) -> Self {
        Self {
            id: new_id("event"),
            r#type,
            object_id: object_id.to_owned(),
            created_at: Timestamp::now(),
        }
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
    store.read(&key, |data| {
        data.events
            .get(&id)
            .cloned()
            .map(Json)
            .ok_or(Failure::NotFound)
    })
}

/// `GET /events/stream`: the events from now on, as server-sent events.
///
/// The stream ends when its key becomes invalid, for example because it is revoked. Its last event is then `end`, with the
/// problem that the next request with the key gets. If a stream ends without it, the client opens it again: the server is
/// stopping, or the client has read too slowly and finds the missed events at `GET /events`.
pub async fn stream(
    State(store): State<Store>,
    key: VerifiedKey,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Error>>>, Failure> {
    let events = store.of(&key, |data| data.stream())?;
    Ok(Sse::new(until_unusable(key, events)).keep_alive(KeepAlive::default()))
}

/// Streams the events until the key becomes invalid.
fn until_unusable(
    key: VerifiedKey,
    events: broadcast::Receiver<Event>,
) -> impl Stream<Item = Result<sse::Event, Error>> {
    // One future for the whole stream. The layer authorizes a request only when it begins and does not notice a revocation.
    let unusable = Box::pin(async move { key.reject(key.revoked().await) });
    stream::unfold(Some((events, unusable)), |open| async move {
        let (mut events, mut unusable) = open?;
        tokio::select! {
            // In this order, so that a stream with many events ends too.
            biased;
            rejection = &mut unusable => Some((Ok(sse::Event::default().event("end").data(rejection.response().body)), None)),
            event = events.recv() => {
                let event = event.ok()?;
                let sent = sse::Event::default().id(&event.id).event(event.r#type).json_data(&event);
                Some((sent, Some((events, unusable))))
            }
        }
    })
}
