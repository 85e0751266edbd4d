//! The list of keys.

use actix_web::{HttpRequest, get, web};
use askama::Template;
use serde::Deserialize;
use tollkey_core::{Family, Problem, text};
use tollkey_service::api_keys;

use super::{
    super::{
        page::{self, Frame},
        search::{has_secret, redirect_key_search},
        session::SignedIn,
    },
    choice::{Choice, choices},
    view::{EffectiveStatus, KeyView, SECTION},
};
use crate::{body::Query, rejection::HandlerResult, state::State, surfaces::members};

const SHOWN: u32 = 50;

/// Empty fields are not set.
#[derive(Debug, Clone, Default, Deserialize)]
struct ListQuery {
    #[serde(default)]
    q: String,
    #[serde(default)]
    mode: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    application: String,
    #[serde(default)]
    cursor: String,
    done: Option<String>,
}

impl ListQuery {
    fn is_filtered(&self) -> bool {
        [&self.q, &self.mode, &self.status, &self.application]
            .iter()
            .any(|field| !field.is_empty())
    }

    fn key_query(&self) -> Result<api_keys::KeyQuery, Problem> {
        let filled = |field: &'static str, text: &str| {
            Some(text.trim().to_owned())
                .filter(|_| !text.trim().is_empty())
                .map(|text| (field, text))
        };
        fn read<T: std::str::FromStr>(
            field: Option<(&'static str, String)>,
        ) -> Result<Option<T>, Problem> {
            field
                .map(|(name, text)| {
                    text.parse()
                        .map_err(|_| Problem::field(name, "is not one of the choices"))
                })
                .transpose()
        }
        let status = filled("status", &self.status).map(|(name, text)| {
            let known = EffectiveStatus::ALL
                .into_iter()
                .find(|status| status.as_str() == text);
            known.ok_or_else(|| Problem::field(name, "is not one of the choices"))
        });
        let (status, application_enabled) = status
            .transpose()?
            .map(EffectiveStatus::filter)
            .map_or((None, None), |(status, enabled)| (Some(status), enabled));
        Ok(api_keys::KeyQuery {
            mode: read(filled("mode", &self.mode))?,
            status,
            application_enabled,
            application: read(filled("application", &self.application))?,
            text: text::search(Some(&self.q))
                .map_err(|rule| Problem::field("q", rule.to_string()))?,
            ..api_keys::KeyQuery::of(&Family::ALL)
        })
    }

    fn from(&self, cursor: String) -> String {
        let pairs = [
            ("q", self.q.as_str()),
            ("mode", &self.mode),
            ("status", &self.status),
            ("application", &self.application),
            ("cursor", &cursor),
        ];
        let filled: Vec<_> = pairs
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .collect();
        format!(
            "/dashboard/keys?{}",
            serde_urlencoded::to_string(filled).unwrap_or_default()
        )
    }
}

#[derive(Template)]
#[template(path = "keys.html")]
struct ListPage {
    frame: Frame,
    statuses: [EffectiveStatus; 5],
    query: ListQuery,
    keys: Vec<KeyView>,
    applications: Vec<Choice>,
    next: Option<String>,
    /// The page is not full although there are more keys, because a search examines a bounded number of keys.
    is_partial: bool,
}

#[get("/keys")]
pub(in super::super) async fn list(
    state: web::Data<State>,
    visitor: SignedIn,
    request: HttpRequest,
    query: Query,
) -> HandlerResult {
    let query: ListQuery = query.read()?;
    if has_secret(&query.q) {
        return Ok(redirect_key_search(&request, "/dashboard/keys"));
    }
    let by = &visitor.by;
    let cursor = Some(query.cursor.as_str()).filter(|cursor| !cursor.is_empty());
    let (limit, after) = members::listing(Some(SHOWN), cursor)?;
    let key_query = query.key_query()?;
    let selected = key_query.application;
    let found = api_keys::list(&state.service, by, key_query, after, limit).await?;
    let shown = found.keys.iter().filter_map(|key| key.application_id);
    let applications = choices(&state, by, shown.chain(selected)).await?;
    let now = state.service.clock.now();
    let is_partial = found.next.is_some() && found.keys.len() < limit as usize;
    page::page(&ListPage {
        is_partial,
        statuses: EffectiveStatus::ALL,
        frame: Frame::of(&visitor, SECTION, "API keys")
            .done(query.done.as_deref(), &["account", "pasted"]),
        keys: found
            .keys
            .iter()
            .map(|key| KeyView::new(key, &applications, now))
            .collect(),
        next: found
            .next
            .map(|next| query.from(members::shown_cursor(next))),
        applications,
        query,
    })
}
