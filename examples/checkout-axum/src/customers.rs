//! Customers. `customers:read` lists and retrieves them; `customers:write` creates and updates them.

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

/// A customer.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Customer {
    id: String,
    mode: &'static str,
    email: String,
    name: Option<String>,
    created_at: Timestamp,
}

/// The body of `POST /customers`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewCustomer {
    email: String,
    name: Option<String>,
}

/// The body of `PATCH /customers/{id}`; absent fields do not change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomerUpdate {
    email: Option<String>,
    name: Option<String>,
}

fn check_email(email: &str) -> Result<(), Failure> {
    if email.contains('@') {
        Ok(())
    } else {
        Err(Failure::Invalid("email must be an email address"))
    }
}

/// `GET /customers`, newest first.
pub async fn list(State(store): State<Store>, key: VerifiedKey) -> Json<Vec<Customer>> {
    Json(store.read(&key, |data| {
        data.customers.values().rev().cloned().collect()
    }))
}

/// `GET /customers/{id}`.
pub async fn retrieve(
    State(store): State<Store>,
    key: VerifiedKey,
    Path(id): Path<String>,
) -> Result<Json<Customer>, Failure> {
    store.read(&key, |data| {
        data.customers
            .get(&id)
            .cloned()
            .map(Json)
            .ok_or(Failure::NotFound)
    })
}

/// `POST /customers`.
pub async fn create(
    State(store): State<Store>,
    key: VerifiedKey,
    Json(new): Json<NewCustomer>,
) -> Result<(StatusCode, Json<Customer>), Failure> {
    check_email(&new.email)?;
    let customer = Customer {
        id: new_id("customer"),
        mode: key.mode().as_str(),
        email: new.email,
        name: new.name,
        created_at: Timestamp::now(),
    };
    store.of(&key, |data| {
        add(&mut data.customers, &customer.id, customer.clone())?;
        data.record(Event::new("customer.created", &customer.id));
        Ok((StatusCode::CREATED, Json(customer)))
    })
}

/// `PATCH /customers/{id}`.
pub async fn update(
    State(store): State<Store>,
    key: VerifiedKey,
    Path(id): Path<String>,
    Json(update): Json<CustomerUpdate>,
) -> Result<Json<Customer>, Failure> {
    if let Some(email) = &update.email {
        check_email(email)?;
    }
    store.of(&key, |data| {
        let customer = data.customers.get_mut(&id).ok_or(Failure::NotFound)?;
        if let Some(email) = update.email {
            customer.email = email;
        }
        if let Some(name) = update.name {
            customer.name = Some(name);
        }
        let customer = customer.clone();
        data.record(Event::new("customer.updated", &id));
        Ok(Json(customer))
    })
}
