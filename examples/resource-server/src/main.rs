//! An API of payment links behind Tollkey: `GET` and `POST /api/v1/links`.
//!
//! Each handler begins by asking Tollkey whether the key of the request may do this ([`guard`]). What it learns of
//! the key is whose links it sees: those of its account, in its mode.
#![forbid(unsafe_code)]

mod guard;

use std::{
    collections::VecDeque,
    env,
    sync::{Mutex, PoisonError},
};

use actix_web::{App, HttpRequest, HttpResponse, HttpServer, get, post, web};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use tollkey_client::{Mode, Open, Scope, verification::VerifiedKey};

use guard::{Guard, Refused};

/// How many links are kept; the oldest goes first.
const MAX_LINKS: usize = 1000;

/// A payment link.
#[derive(Debug, Clone, Serialize)]
struct Link {
    #[serde(skip)]
    account: String,
    mode: Open<Mode>,
    url: String,
}

impl Link {
    fn belongs_to(&self, key: &VerifiedKey) -> bool {
        self.account == key.account_id && self.mode == key.mode
    }
}

/// All links there are.
#[derive(Debug, Default)]
struct Links(Mutex<VecDeque<Link>>);

#[get("/api/v1/links")]
async fn list(request: HttpRequest, guard: web::Data<Guard>, links: web::Data<Links>) -> Result<HttpResponse, Refused> {
    let key = guard.allow(&request, Scope::LINKS_READ).await?;
    let links = links.0.lock().unwrap_or_else(PoisonError::into_inner);
    let own: Vec<&Link> = links.iter().filter(|link| link.belongs_to(&key)).collect();
    Ok(HttpResponse::Ok().json(own))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewLink {
    url: String,
}

#[post("/api/v1/links")]
async fn create(
    request: HttpRequest,
    guard: web::Data<Guard>,
    links: web::Data<Links>,
    body: web::Json<NewLink>,
) -> Result<HttpResponse, Refused> {
    let key = guard.allow(&request, Scope::LINKS_WRITE).await?;
    let link = Link { account: key.account_id, mode: key.mode, url: body.into_inner().url };
    let mut links = links.0.lock().unwrap_or_else(PoisonError::into_inner);
    if links.len() == MAX_LINKS {
        links.pop_front();
    }
    links.push_back(link.clone());
    Ok(HttpResponse::Created().json(link))
}

#[actix_web::main]
async fn main() -> anyhow::Result<()> {
    let url = env::var("TOLLKEY_URL").unwrap_or_else(|_| "http://127.0.0.1:8080".to_owned());
    let service_key = env::var("TOLLKEY_SERVICE_KEY").context("set TOLLKEY_SERVICE_KEY to a service key (tks_…)")?;
    let listen = env::var("LISTEN").unwrap_or_else(|_| "127.0.0.1:8081".to_owned());

    let guard = web::Data::new(Guard::new(&url, service_key)?);
    let links = web::Data::new(Links::default());
    let server = HttpServer::new(move || {
        App::new()
            .app_data(guard.clone())
            .app_data(links.clone())
            .app_data(web::JsonConfig::default().limit(4096))
            .service(list)
            .service(create)
    })
    .bind(&listen)
    .with_context(|| format!("cannot listen on {listen}"))?;
    for address in server.addrs() {
        eprintln!("listening on http://{address}");
    }
    server.run().await?;
    Ok(())
}
