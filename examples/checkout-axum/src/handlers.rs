//! What is done on the routes, the same for every kind of thing. Whose things, says the key alone.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use tollkey_axum::VerifiedKey;

use crate::{
    books::Books,
    failure::{Body, Failure},
    things::{Changeable, Creatable, Event, Head, Thing},
};

/// What a handler answers.
type Answer<T> = Result<T, Failure>;

/// `GET /…`: the account's, in the key's mode, newest first.
pub async fn list<T: Thing>(State(books): State<Books>, key: VerifiedKey) -> Json<Vec<T>> {
    Json(books.read(&key, |book| T::shelf(book).iter().rev().cloned().collect()))
}

/// `GET /…/{id}`.
pub async fn retrieve<T: Thing>(
    State(books): State<Books>,
    key: VerifiedKey,
    Path(id): Path<String>,
) -> Answer<Json<T>> {
    let found = books.read(&key, |book| T::shelf(book).iter().find(|thing| thing.head().id == id).cloned());
    found.map(Json).ok_or_else(Failure::not_found)
}

/// `POST /…`.
pub async fn create<T: Creatable>(
    State(books): State<Books>,
    key: VerifiedKey,
    Body(new): Body<T::New>,
) -> Answer<(StatusCode, Json<T>)> {
    let thing = T::create(Head::new(T::NAME, key.mode()), new)?;
    books.write(&key, |book| {
        T::shelf_mut(book).add(thing.clone())?;
        book.events.push(Event::of::<T>("created", thing.head()));
        Ok((StatusCode::CREATED, Json(thing)))
    })
}

/// `PATCH /…/{id}`.
pub async fn change<T: Changeable>(
    State(books): State<Books>,
    key: VerifiedKey,
    Path(id): Path<String>,
    Body(change): Body<T::Change>,
) -> Answer<Json<T>> {
    books.write(&key, |book| {
        let thing = T::shelf_mut(book).get_mut(&id).ok_or_else(Failure::not_found)?;
        thing.change(change)?;
        let thing = thing.clone();
        book.events.push(Event::of::<T>("updated", thing.head()));
        Ok(Json(thing))
    })
}

/// `DELETE /…/{id}`.
pub async fn remove<T: Creatable>(
    State(books): State<Books>,
    key: VerifiedKey,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    books.write(&key, |book| {
        let thing = T::shelf_mut(book).remove(&id).ok_or_else(Failure::not_found)?;
        book.events.push(Event::of::<T>("deleted", thing.head()));
        Ok(StatusCode::NO_CONTENT)
    })
}
