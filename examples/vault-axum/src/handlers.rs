//! The handlers. The key determines which tokens they can use.

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tollkey_axum::VerifiedKey;

use crate::{
    Api,
    failure::{Body, Failure},
    upstream::UpstreamResponse,
    vault::{Last4, PaymentData, Token},
};

/// The result of a handler.
type HandlerResult<T> = Result<Json<T>, Failure>;

/// The body of `POST /merchants/{merchant}/tokens`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    number: Last4,
    holder: String,
    expiry: String,
}

/// `POST /merchants/{merchant}/tokens`.
pub async fn create(
    State(api): State<Api>,
    key: VerifiedKey,
    Body(new): Body<NewToken>,
) -> Result<(StatusCode, Json<Token>), Failure> {
    // The merchant that Tollkey has authorized, not parsed from the path again.
    let merchant = key.merchant().ok_or_else(Failure::not_found)?;
    let token = Token::new(merchant, new.holder, new.number, new.expiry);
    api.vaults.keep(&key, token.clone())?;
    Ok((StatusCode::CREATED, Json(token)))
}

/// `GET /tokens`.
pub async fn list(State(api): State<Api>, key: VerifiedKey) -> Json<Vec<Token>> {
    Json(api.vaults.seen_by(&key))
}

/// `GET /tokens/{id}`.
pub async fn retrieve(
    State(api): State<Api>,
    key: VerifiedKey,
    Path(id): Path<String>,
) -> HandlerResult<Token> {
    api.vaults.find(&key, |token| token.id == id).map(Json)
}

/// `GET /tokens/{id}/payment-data`.
pub async fn payment_data(
    State(api): State<Api>,
    key: VerifiedKey,
    Path(id): Path<String>,
) -> HandlerResult<Vec<PaymentData>> {
    let token = api.vaults.find(&key, |token| token.id == id)?;
    Ok(Json(vec![token.payment_data]))
}

/// The body of `POST /payment-data/{id}/forward`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// A message for the receiver.
    message: Value,
}

/// The request to the receiver.
#[derive(Serialize)]
struct Forwarded<'a, T> {
    merchant: &'a str,
    data: T,
    message: Value,
}

/// `POST /payment-data/{id}/forward`.
pub async fn forward_payment_data(
    State(api): State<Api>,
    key: VerifiedKey,
    Path(id): Path<String>,
    Body(Message { message }): Body<Message>,
) -> HandlerResult<UpstreamResponse> {
    let token = api.vaults.find(&key, |token| token.payment_data.id == id)?;
    let forwarded = Forwarded {
        merchant: &token.merchant,
        data: &token.payment_data,
        message,
    };
    api.upstream.forward(&forwarded).await.map(Json)
}

/// The body of `POST /forward`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forward {
    /// The ID of the token.
    token: String,
    /// A message for the receiver.
    message: Value,
}

/// The data of a cardholder.
#[derive(Serialize)]
struct Cardholder<'a> {
    token: &'a str,
    holder: &'a str,
    last4: &'a Last4,
}

/// `POST /forward`.
pub async fn forward_cardholder_data(
    State(api): State<Api>,
    key: VerifiedKey,
    Body(Forward { token: id, message }): Body<Forward>,
) -> HandlerResult<UpstreamResponse> {
    let token = api.vaults.find(&key, |token| token.id == id)?;
    let data = Cardholder {
        token: &token.id,
        holder: &token.holder,
        last4: &token.last4,
    };
    api.upstream
        .forward(&Forwarded {
            merchant: &token.merchant,
            data,
            message,
        })
        .await
        .map(Json)
}
