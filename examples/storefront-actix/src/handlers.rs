//! The handlers. The key determines the shop that they use.

use actix_web::{
    HttpResponse,
    http::StatusCode,
    web::{Data, Json, Path},
};
use serde::Deserialize;
use serde_json::json;
use tollkey_actix::VerifiedKey;
use uuid::Uuid;

use crate::{
    envelope::{Failure, data, now},
    shops::{Listed, Price, Product, Shops},
};

/// The result of a handler.
type HandlerResult = Result<HttpResponse, Failure>;

/// `GET /v1/storefront/public/store`.
pub async fn store(key: VerifiedKey, shops: Data<Shops>) -> HttpResponse {
    shops.read(&key, |shop| {
        data(StatusCode::OK, json!({"name": shop.name}))
    })
}

/// `GET /v1/storefront/products`: the published products.
pub async fn products(key: VerifiedKey, shops: Data<Shops>) -> HttpResponse {
    shops.read(&key, |shop| {
        data(StatusCode::OK, shop.listed().collect::<Vec<_>>())
    })
}

/// `GET /v1/storefront/products/{id}`, if it is published.
pub async fn product(key: VerifiedKey, shops: Data<Shops>, id: Path<String>) -> HandlerResult {
    shops.read(&key, |shop| {
        let found = shop.listed().find(|product| product.id == *id);
        found
            .map(|product| data(StatusCode::OK, product))
            .ok_or_else(Failure::not_found)
    })
}

/// `GET /v1/account/products`: all products.
pub async fn own_products(key: VerifiedKey, shops: Data<Shops>) -> HttpResponse {
    shops.read(&key, |shop| data(StatusCode::OK, &shop.products))
}

/// The body of `POST /v1/account/products`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewProduct {
    name: String,
    price: Price,
    #[serde(default)]
    published: bool,
    #[serde(default)]
    stock: u32,
}

/// `POST /v1/account/products`.
pub async fn create_product(
    key: VerifiedKey,
    shops: Data<Shops>,
    new: Json<NewProduct>,
) -> HandlerResult {
    let NewProduct {
        name,
        price,
        published,
        stock,
    } = new.into_inner();
    check_name(&name)?;
    let is_currency =
        price.currency.len() == 3 && price.currency.bytes().all(|byte| byte.is_ascii_uppercase());
    Failure::unless(
        is_currency,
        "price.currency must be three capital letters, such as \"EUR\"",
    )?;
    let listed = Listed {
        id: format!("prod_{}", Uuid::now_v7().simple()),
        name,
        price,
    };
    let product = Product {
        listed,
        published,
        stock,
        created_at: now(),
    };
    shops.change(&key, |shop| {
        shop.add(product.clone())?;
        Ok(data(StatusCode::CREATED, product))
    })
}

/// `DELETE /v1/account/products/{id}`.
pub async fn delete_product(
    key: VerifiedKey,
    shops: Data<Shops>,
    id: Path<String>,
) -> HandlerResult {
    shops.change(&key, |shop| Ok(data(StatusCode::OK, shop.remove(&id)?)))
}

/// The body of `PUT /v1/account/store`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreName {
    name: String,
}

/// `PUT /v1/account/store`.
pub async fn name_store(
    key: VerifiedKey,
    shops: Data<Shops>,
    new: Json<StoreName>,
) -> HandlerResult {
    let StoreName { name } = new.into_inner();
    check_name(&name)?;
    shops.change(&key, |shop| {
        shop.name = Some(name);
        Ok(data(StatusCode::OK, json!({"name": shop.name})))
    })
}

fn check_name(name: &str) -> Result<(), Failure> {
    Failure::unless(
        (1..=100).contains(&name.chars().count()),
        "name must have 1 to 100 characters",
    )
}
