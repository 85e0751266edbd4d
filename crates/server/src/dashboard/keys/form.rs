//! The form that creates a key.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp, civil::Date, tz::TimeZone};
use tollkey_api::time::Moment;
use tollkey_core::{
    ApplicationId, Catalogue, Family, FieldErrors, Invalid, Mode, OperatingModel, Problem,
    Restrictions, Scope, api_key::Overlap, feature::Feature, text,
};
use tollkey_service::api_keys::NewKey;

use super::{
    super::{fields::Fields, once},
    choice::Choice,
};
use crate::{state::State, surfaces::members};

#[derive(Debug)]
pub(super) struct NewKeyForm {
    /// Resources with scopes for reading or writing.
    pub(super) resources: Vec<Resource>,
    /// All other scopes.
    pub(super) scopes: Vec<String>,
    /// The features for scoped keys of the account; empty if it has no scoped keys.
    pub(super) features: Vec<&'static str>,
    pub(super) applications: Vec<Choice>,
    /// The first day on which a key can expire.
    pub(super) tomorrow: String,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) name: String,
    pub(super) read: bool,
    pub(super) write: bool,
}

impl Resource {
    pub(super) fn field(&self) -> String {
        format!("scope.{}", self.name)
    }
}

/// Groups scopes by resource, and returns the others separately.
fn grid(scopes: &[Scope]) -> (Vec<Resource>, Vec<String>) {
    let (mut resources, mut others): (Vec<Resource>, Vec<String>) = (Vec::new(), Vec::new());
    for scope in scopes.iter().filter(|scope| **scope != Scope::COMMERCE) {
        let (name, writes) = match scope.as_str().rsplit_once(':') {
            Some((name, "read")) => (name, false),
            Some((name, "write")) => (name, true),
            _ => {
                others.push(scope.to_string());
                continue;
            }
        };
        let known = resources.iter().position(|resource| resource.name == name);
        let at = known.unwrap_or_else(|| {
            resources.push(Resource {
                name: name.to_owned(),
                read: false,
                write: false,
            });
            resources.len() - 1
        });
        if writes {
            resources[at].write = true;
        } else {
            resources[at].read = true;
        }
    }
    (resources, others)
}

impl NewKeyForm {
    pub(super) fn new(state: &State, model: OperatingModel, applications: Vec<Choice>) -> Self {
        let (resources, scopes) = grid(state.service.catalogue.scopes());
        let features = model
            .features()
            .iter()
            .map(|feature| feature.as_str())
            .collect();
        let tomorrow = state
            .service
            .clock
            .now()
            .to_zoned(TimeZone::UTC)
            .date()
            .tomorrow()
            .unwrap_or(Date::MAX)
            .to_string();
        Self {
            resources,
            scopes,
            features,
            applications,
            tomorrow,
        }
    }

    pub(super) fn untouched(state: &State, account: &str, application: &str) -> Fields {
        let kind = if application.is_empty() {
            "commerce"
        } else {
            "application"
        };
        let fields = once::untouched(state, account)
            .with("kind", kind)
            .with("application", application);
        fields
            .with("mode", Mode::Test.as_str())
            .with("access", "all")
            .with("expires", "never")
    }
}

#[derive(Debug)]
pub(super) struct KeyRequest {
    pub(super) family: Family,
    pub(super) application: Option<ApplicationId>,
    pub(super) key: NewKey,
}

/// The problem names every field that breaks a rule.
pub(super) fn read(
    fields: &Fields,
    catalogue: &Catalogue,
    now: Timestamp,
) -> Result<KeyRequest, Problem> {
    let mut checks = FieldErrors::default();
    let kind = checks.check("/kind", kind(fields.get("kind")));
    let application = match kind {
        Some(Family::Application) => {
            let id = fields
                .get("application")
                .parse()
                .map(Some)
                .map_err(|_| Invalid::new("must be chosen"));
            checks.check("/application", id)
        }
        _ => Some(None),
    };
    let has_scopes = !matches!(kind, Some(Family::Secret | Family::Publishable));
    // The same limits as in the APIs of these keys.
    let name = checks.check(
        "/name",
        text::required(fields.get("name"), if has_scopes { 255 } else { 100 }),
    );
    let mode = fields
        .get("mode")
        .parse::<Mode>()
        .map_err(|_| Invalid::new("must be chosen"));
    let mode = checks.check("/mode", mode);
    let scopes = if has_scopes {
        scopes(fields, catalogue)
    } else {
        Ok(Vec::new())
    };
    let scopes = checks.check("/scopes", scopes);
    let expires_at = match end(fields, now) {
        Ok(end) => checks.check("/expires", Restrictions::parse_expiration(end, now)),
        Err(rule) => checks.check("/expires", Err(rule)),
    };
    // Only commerce keys are scoped keys.
    let is_commerce = kind == Some(Family::Commerce);
    let merchants = fields.list("merchants").filter(|_| is_commerce);
    let merchants = merchants
        .map(|list| text::external_ids(list.iter().map(String::as_str)))
        .transpose();
    let merchants = checks.check("/merchants", merchants);
    let chosen: Vec<&str> = fields.all("features").filter(|_| is_commerce).collect();
    let features = if chosen.is_empty() {
        Ok(None)
    } else {
        Feature::parse_list(chosen).map(Some)
    };
    let features = checks.check("/features", features);
    let allowed_ips = fields
        .list("allowed_ips")
        .map(|list| list.into_iter().map(network).collect::<Vec<_>>());
    let allowed_ips = checks.check("/allowed_ips", members::networks(allowed_ips.as_deref()));
    let requested_key = || {
        let restrictions = Restrictions {
            scopes: scopes?,
            merchants: merchants?,
            features: features?,
            allowed_ips: allowed_ips?,
            expires_at: expires_at?,
            ..Restrictions::default()
        };
        Some(KeyRequest {
            family: kind?,
            application: application?,
            key: NewKey {
                name: name?,
                mode: mode?,
                restrictions,
                ..NewKey::default()
            },
        })
    };
    checks.finish(requested_key())
}

/// Turns a single IP address into a range. The API requires the prefix length, so that programs are explicit.
fn network(text: String) -> String {
    text.parse::<IpAddr>()
        .map_or(text, |address| IpNet::from(address).to_string())
}

fn kind(text: &str) -> Result<Family, Invalid> {
    text.parse().map_err(|_| Invalid::new("must be chosen"))
}

/// Returns full commerce access, or the selected scopes. Write access includes read access here: the API also creates
/// keys that can only write, which a form would have to explain.
fn scopes(fields: &Fields, catalogue: &Catalogue) -> Result<Vec<Scope>, Invalid> {
    if fields.get("access") != "chosen" {
        return Ok(vec![Scope::COMMERCE]);
    }
    let (resources, _) = grid(catalogue.scopes());
    let mut names: Vec<String> = Vec::new();
    for resource in &resources {
        let level = fields.get(&resource.field()).to_owned();
        if resource.read && matches!(level.as_str(), "read" | "write") {
            names.push(format!("{}:read", resource.name));
        }
        if resource.write && level == "write" {
            names.push(format!("{}:write", resource.name));
        }
    }
    names.extend(fields.all("scope").map(str::to_owned));
    if names.is_empty() {
        return Err(Invalid::new(
            "Select at least one scope, or full commerce access.",
        ));
    }
    catalogue.parse_list(names.iter().map(String::as_str))
}

/// Returns the expiration: never, in some days, or at the start of a day (UTC).
fn end(fields: &Fields, now: Timestamp) -> Result<Option<Timestamp>, Invalid> {
    match fields.get("expires") {
        "never" => Ok(None),
        "on" => {
            let day: Date = fields
                .get("expires_on")
                .parse()
                .map_err(|_| Invalid::new("must be a day"))?;
            let start: Moment = format!("{day}T00:00:00Z")
                .parse()
                .map_err(|_| Invalid::new("must be a day"))?;
            Ok(Some(start.into()))
        }
        days => {
            let days = ["7", "30", "90", "365"]
                .contains(&days)
                .then(|| days.parse().ok())
                .flatten();
            let days: i64 = days.ok_or_else(|| Invalid::new("must be chosen"))?;
            now.checked_add(SignedDuration::from_hours(24 * days))
                .map(Some)
                .map_err(|_| Invalid::new("is too late"))
        }
    }
}

pub(super) fn overlap(fields: &Fields) -> Result<Overlap, Invalid> {
    Overlap::parse(
        fields
            .get("overlap")
            .parse()
            .map_err(|_| Invalid::new("must be chosen"))?,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn read_and_write_scopes_form_a_grid_and_others_a_list() {
        let mut catalogue = Catalogue::default();
        for name in ["orders:write", "store:items:read", "reports", "a:b"] {
            catalogue.add(name, false).unwrap();
        }
        let (resources, others) = grid(catalogue.scopes());
        let shown: Vec<_> = resources
            .iter()
            .map(|one| (one.name.as_str(), one.read, one.write))
            .collect();
        let expected = [
            ("links", true, true),
            ("sessions", true, true),
            ("webhooks", true, true),
            ("events", true, false),
            ("customers", true, true),
            ("orders", false, true),
            ("store:items", true, false),
        ];
        assert_eq!(shown, expected);
        assert_eq!(others, ["reports", "a:b"]);
    }

    #[test]
    fn form_sets_scopes_and_expiration() {
        let catalogue = Catalogue::default();
        let now = Timestamp::UNIX_EPOCH;
        let form = || {
            Fields::default()
                .with("name", "n")
                .with("kind", "commerce")
                .with("mode", "test")
        };
        let all = form().with("expires", "never");
        assert_eq!(
            read(&all, &catalogue, now).unwrap().key.restrictions.scopes,
            [Scope::COMMERCE]
        );
        let chosen = form().with("access", "chosen").with("expires", "30");
        let some = chosen
            .clone()
            .with("scope.links", "write")
            .with("scope.events", "read");
        let key = read(&some, &catalogue, now).unwrap().key;
        assert_eq!(
            key.restrictions.scopes,
            [Scope::LINKS_READ, Scope::LINKS_WRITE, Scope::EVENTS_READ]
        );
        assert_eq!(
            key.restrictions.expires_at,
            Some(Timestamp::from_second(30 * 86_400).unwrap())
        );
        let none = read(&chosen.with("scope.links", "none"), &catalogue, now).unwrap_err();
        assert_eq!(none.errors[0].pointer, "/scopes");
        let on = form()
            .with("expires", "on")
            .with("expires_on", "1970-01-03");
        let key = read(&on, &catalogue, now).unwrap().key;
        assert_eq!(
            key.restrictions.expires_at,
            Some(Timestamp::from_second(2 * 86_400).unwrap())
        );
        for (wrong, pointer) in [
            (form().with("expires", "8"), "/expires"),
            (form().with("expires", "on"), "/expires"),
            (
                form()
                    .with("expires", "on")
                    .with("expires_on", "1970-01-01"),
                "/expires",
            ),
            (
                form()
                    .with("expires", "on")
                    .with("expires_on", "-009999-01-01"),
                "/expires",
            ),
            (
                Fields::default()
                    .with("expires", "never")
                    .with("mode", "test")
                    .with("kind", "commerce"),
                "/name",
            ),
            (
                form()
                    .with("expires", "never")
                    .with("allowed_ips", "10.0.0.0/8 x"),
                "/allowed_ips",
            ),
        ] {
            let problem = read(&wrong, &catalogue, now).unwrap_err();
            assert_eq!(problem.errors.len(), 1, "{problem:?}");
            assert!(
                problem.errors[0].pointer.starts_with(pointer),
                "{problem:?}"
            );
        }
    }
}
