//! Keys and their usage on a page.

use jiff::{Timestamp, civil::date};
use tollkey_core::{ApiKey, Family, Mode, Status};
use tollkey_store::DayUsage;

use super::{super::page::Time, choice::Choice};

pub(super) const SECTION: &str = "keys";

/// The status of a key on a page: the result of verifying the key. The API returns [`Status`], the key's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum EffectiveStatus {
    /// The status of the key and its ancestors.
    Key(Status),
    /// The key would be active, but its application is disabled.
    ApplicationDisabled,
}

impl EffectiveStatus {
    /// All values, in the order of the filter.
    pub(in super::super) const ALL: [Self; 5] = [
        Self::Key(Status::Active),
        Self::ApplicationDisabled,
        Self::Key(Status::Suspended),
        Self::Key(Status::Expired),
        Self::Key(Status::Revoked),
    ];

    /// Returns the value of the filter, which is also the CSS class.
    pub(in super::super) fn as_str(self) -> &'static str {
        match self {
            Self::Key(status) => status.as_str(),
            Self::ApplicationDisabled => "application_disabled",
        }
    }

    /// Returns the text on a page; style sheet and template capitalize its first letter.
    pub(in super::super) fn label(self) -> &'static str {
        match self {
            Self::Key(status) => status.as_str(),
            Self::ApplicationDisabled => "Application disabled",
        }
    }

    /// Returns the filter for keys with this status: their own status, and whether their application is enabled.
    pub(in super::super) fn filter(self) -> (Status, Option<bool>) {
        match self {
            Self::Key(Status::Active) => (Status::Active, Some(true)),
            Self::Key(status) => (status, None),
            Self::ApplicationDisabled => (Status::Active, Some(false)),
        }
    }
}

#[derive(Debug)]
pub(in super::super) struct KeyView {
    pub(in super::super) id: String,
    pub(in super::super) name: String,
    pub(in super::super) kind: &'static str,
    pub(in super::super) is_commerce: bool,
    pub(in super::super) prefix: String,
    pub(in super::super) last4: String,
    pub(in super::super) is_live: bool,
    pub(in super::super) status: EffectiveStatus,
    pub(in super::super) scopes: Vec<String>,
    pub(in super::super) merchants: Option<Vec<String>>,
    pub(in super::super) features: Option<Vec<&'static str>>,
    pub(in super::super) allowed_ips: Option<Vec<String>>,
    pub(in super::super) rate_limit: Option<String>,
    pub(in super::super) application: Option<Choice>,
    pub(in super::super) metadata: Option<String>,
    pub(in super::super) created: Time,
    pub(in super::super) created_by: Option<String>,
    pub(in super::super) used: Option<Time>,
    pub(in super::super) expires: Option<Time>,
    pub(in super::super) suspended: Option<Time>,
    pub(in super::super) revoked: Option<Time>,
    pub(in super::super) reason: Option<String>,
    pub(in super::super) rotated: Option<Time>,
    pub(in super::super) rotated_from: Option<String>,
    pub(in super::super) rotated_to: Option<String>,
    /// Used after its rotation: some clients still use it.
    pub(in super::super) is_still_used: bool,
    pub(in super::super) is_rotatable: bool,
    /// Whether the key itself is suspended, so that it can be resumed.
    pub(in super::super) is_suspended: bool,
}

impl KeyView {
    pub(in super::super) fn new(key: &ApiKey, applications: &[Choice], now: Timestamp) -> Self {
        let restrictions = &key.restrictions;
        let application = key.application_id.map(|id| {
            let id = id.to_string();
            let known = applications.iter().find(|choice| choice.id == id).cloned();
            known.unwrap_or_else(|| Choice {
                name: id.clone(),
                id,
                is_enabled: true,
            })
        });
        let is_disabled = application
            .as_ref()
            .is_some_and(|application| !application.is_enabled);
        let status = match key.status(now) {
            Status::Active if is_disabled => EffectiveStatus::ApplicationDisabled,
            status => EffectiveStatus::Key(status),
        };
        Self {
            id: key.id.to_string(),
            name: key.name.clone(),
            kind: kind(key.family),
            is_commerce: key.family == Family::Commerce,
            prefix: key.prefix.clone(),
            last4: key.last4.clone(),
            is_live: key.mode == Mode::Live,
            status,
            is_rotatable: key.family == Family::Commerce && key.check_rotatable(now).is_ok(),
            is_suspended: key.suspended_at.is_some(),
            scopes: restrictions
                .scopes
                .iter()
                .map(ToString::to_string)
                .collect(),
            merchants: restrictions.merchants.clone(),
            features: restrictions
                .features
                .as_ref()
                .map(|all| all.iter().map(|feature| feature.as_str()).collect()),
            allowed_ips: restrictions
                .allowed_ips
                .as_ref()
                .map(|list| list.networks().iter().map(ToString::to_string).collect()),
            rate_limit: restrictions.rate_limit.map(|limit| {
                format!(
                    "{} uses in {} seconds",
                    limit.limit(),
                    limit.window_seconds()
                )
            }),
            application,
            metadata: key
                .metadata
                .as_ref()
                .map(|metadata| format!("{:#}", serde_json::json!(metadata.object()))),
            created: Time(key.created_at),
            created_by: key.created_by.map(|id| id.to_string()),
            used: key.last_used_at.map(Time),
            expires: restrictions.expires_at.map(Time),
            suspended: key.suspension().map(Time),
            revoked: key.revocation().map(|revocation| Time(revocation.at)),
            reason: key.revocation_reason().map(str::to_owned),
            rotated: key.rotated_at.map(Time),
            rotated_from: key.rotated_from.map(|id| id.to_string()),
            rotated_to: key.rotated_to.map(|id| id.to_string()),
            is_still_used: key
                .rotated_at
                .is_some_and(|at| key.last_used_at.is_some_and(|used| used > at)),
        }
    }

    /// Returns whether the key can be used now or later.
    pub(in super::super) fn is_alive(&self) -> bool {
        !matches!(
            self.status,
            EffectiveStatus::Key(Status::Revoked | Status::Expired)
        )
    }
}

fn kind(family: Family) -> &'static str {
    match family {
        Family::Commerce => "Commerce",
        Family::Application => "Application",
        Family::Secret => "Secret",
        Family::Publishable => "Publishable",
    }
}

#[derive(Debug)]
pub(in super::super) struct Usage {
    /// Oldest first.
    pub(in super::super) days: Vec<Day>,
    pub(in super::super) allowed: u64,
    pub(in super::super) denied: u64,
}

#[derive(Debug)]
pub(in super::super) struct Day {
    /// For example `2026-11-21`.
    pub(in super::super) date: String,
    pub(in super::super) allowed: u64,
    /// By reason.
    pub(in super::super) denied: Vec<(&'static str, u64)>,
    pub(in super::super) denied_total: u64,
    pub(in super::super) x: usize,
    /// The heights of its two parts; [`Usage::HEIGHT`] is the maximum of their sum.
    pub(in super::super) allowed_height: u64,
    pub(in super::super) denied_height: u64,
}

impl Day {
    pub(in super::super) fn denied_y(&self) -> u64 {
        Usage::HEIGHT - self.allowed_height - self.denied_height
    }

    pub(in super::super) fn allowed_y(&self) -> u64 {
        Usage::HEIGHT - self.allowed_height
    }
}

impl Usage {
    const HEIGHT: u64 = 120;
    const STEP: usize = 16;

    pub(in super::super) fn new(usage: &[DayUsage], today: i32, count: i32) -> Self {
        let epoch = date(1970, 1, 1);
        let mut days: Vec<Day> = (today - count + 1..=today)
            .enumerate()
            .map(|(at, number)| {
                let of_day = || usage.iter().filter(move |entry| entry.day == number);
                let allowed = of_day()
                    .filter(|entry| entry.outcome.is_none())
                    .map(|entry| entry.count)
                    .sum();
                let denied: Vec<_> = of_day()
                    .filter_map(|entry| Some((entry.outcome?.code(), entry.count)))
                    .collect();
                let date = epoch
                    .saturating_add(jiff::Span::new().days(number))
                    .to_string();
                let denied_total = denied.iter().map(|(_, count)| count).sum();
                let x = at * Self::STEP;
                Day {
                    date,
                    allowed,
                    denied,
                    denied_total,
                    x,
                    allowed_height: 0,
                    denied_height: 0,
                }
            })
            .collect();
        let most = days
            .iter()
            .map(|day| day.allowed.saturating_add(day.denied_total))
            .max()
            .unwrap_or(0);
        // At least 2, so that small counts are visible.
        let height = |count: u64| match count {
            0 => 0,
            _ => u64::try_from(
                u128::from(count) * u128::from(Self::HEIGHT - 4) / u128::from(most.max(1)),
            )
            .unwrap_or(0)
            .max(2),
        };
        for day in &mut days {
            (day.allowed_height, day.denied_height) =
                (height(day.allowed), height(day.denied_total));
        }
        let allowed = days.iter().map(|day| day.allowed).sum();
        let denied = days.iter().map(|day| day.denied_total).sum();
        Self {
            days,
            allowed,
            denied,
        }
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.allowed + self.denied == 0
    }

    pub(in super::super) fn width(&self) -> usize {
        self.days.len() * Self::STEP
    }

    pub(in super::super) fn most(&self) -> u64 {
        self.days
            .iter()
            .map(|day| day.allowed + day.denied_total)
            .max()
            .unwrap_or(0)
    }
}
