//! Events: changes of the account's objects. A key with the scope `events:read` can list, retrieve and stream them.

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
    /// Creates an event of this type, such as `link.created`, with the current time.
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
/// The stream ends when its key becomes invalid, for example because it is revoked. The last event is then `end`, with
/// the problem that the next request with the key would get.
///
/// If a stream ends without the event `end`, the client should open it again: the server is stopping, or the client has
/// read too slowly. `GET /events` has the events that it missed.
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
    // The layer authorizes a request only when it begins, so the stream itself must wait for a revocation. This is one
    // future for the whole stream.
    let unusable = Box::pin(async move { key.reject(key.revoked().await) });
    stream::unfold(Some((events, unusable)), |open| async move {
        let (mut events, mut unusable) = open?;
        tokio::select! {
            // Checks for a rejection first, so that a stream with many events ends, too.
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
