//! A created key, and its idempotency record.

use serde::{Deserialize, Serialize};
use tollkey_core::{
    AccountId, ApiKey, Family, IpList, KeyId, Mode, PlainKey, RateLimit, Restrictions, Scope,
    Timestamp, feature::Feature, metadata::Metadata,
};

use crate::idempotency::{Recorded, Secret};

/// A created key, together with the full key. Only the response to the creation contains the full key.
#[derive(Debug)]
pub struct CreatedKey {
    pub key: ApiKey,
    pub text: PlainKey,
}

#[derive(Serialize, Deserialize)]
pub struct Snapshot {
    id: String,
    account_id: String,
    application_id: Option<String>,
    name: String,
    family: Family,
    mode: Mode,
    prefix: String,
    last4: String,
    scopes: Vec<Scope>,
    merchants: Option<Vec<String>>,
    features: Option<Vec<Feature>>,
    allowed_ips: Option<Vec<String>>,
    /// Limit and window in seconds.
    rate_limit: Option<(i64, i64)>,
    expires_at: Option<Timestamp>,
    metadata: Option<String>,
    created_at: Timestamp,
    created_by: Option<String>,
    rotated_from: Option<String>,
    text: Secret,
}

/// A replay returns the key as it was created.
impl Recorded<Self> for CreatedKey {
    type Snapshot = Snapshot;

    fn snapshot(created: &Self) -> Snapshot {
        let Self { key, text } = created;
        let restrictions = &key.restrictions;
        Snapshot {
            id: key.id.to_string(),
            account_id: key.account_id.to_string(),
            application_id: key.application_id.map(|id| id.to_string()),
            name: key.name.clone(),
            family: key.family,
            mode: key.mode,
            prefix: key.prefix.clone(),
            last4: key.last4.clone(),
            scopes: restrictions.scopes.clone(),
            merchants: restrictions.merchants.clone(),
            features: restrictions.features.clone(),
            allowed_ips: restrictions
                .allowed_ips
                .as_ref()
                .map(|list| list.networks().iter().map(ToString::to_string).collect()),
            rate_limit: restrictions.rate_limit.map(|limit| {
                (
                    limit.limit().get().into(),
                    limit.window_seconds().get().into(),
                )
            }),
            expires_at: restrictions.expires_at,
            metadata: key
                .metadata
                .as_ref()
                .map(|metadata| metadata.as_json().to_owned()),
            created_at: key.created_at,
            created_by: key.created_by.map(|id| id.to_string()),
            rotated_from: key.rotated_from.map(|id| id.to_string()),
            text: Secret::new(text.expose()),
        }
    }

    fn restore(snapshot: Snapshot) -> Option<Self> {
        let text = PlainKey::parse(snapshot.text.expose())?;
        let id = |text: Option<String>| text.map(|text| text.parse::<KeyId>()).transpose().ok();
        let networks = snapshot
            .allowed_ips
            .as_deref()
            .map(|list| IpList::parse(list.iter().map(String::as_str)));
        let rate_limit = snapshot
            .rate_limit
            .map(|(limit, window)| RateLimit::new(limit, window));
        let (family, mode) = (snapshot.family, snapshot.mode);
        let account_id = AccountId::stored(&snapshot.account_id).ok()?;
        let key = ApiKey {
            application_id: snapshot
                .application_id
                .map(|id| id.parse())
                .transpose()
                .ok()?,
            name: snapshot.name,
            prefix: snapshot.prefix,
            last4: snapshot.last4,
            restrictions: Restrictions {
                scopes: snapshot.scopes,
                merchants: snapshot.merchants,
                features: snapshot.features,
                allowed_ips: networks.transpose().ok()?,
                rate_limit: rate_limit.transpose().ok()?,
                expires_at: snapshot.expires_at,
            },
            metadata: snapshot
                .metadata
                .map(|json| Metadata::parse(&json))
                .transpose()
                .ok()?,
            created_by: id(snapshot.created_by)?,
            rotated_from: id(snapshot.rotated_from)?,
            ..ApiKey::new(
                snapshot.id.parse().ok()?,
                account_id,
                &text,
                (family, mode),
                snapshot.created_at,
            )
        };
        Some(Self { key, text })
    }
}

/// A replay returns the ID only.
impl Recorded<CreatedKey> for KeyId {
    type Snapshot = String;

    fn snapshot(created: &CreatedKey) -> String {
        created.key.id.to_string()
    }

    fn restore(snapshot: String) -> Option<Self> {
        snapshot.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng as _, rngs::StdRng};
    use tollkey_core::{key_format::CredentialKind, time::to_seconds};

    use super::*;

    #[test]
    fn record_restores_the_key_as_it_was_created() {
        let mut rng = StdRng::seed_from_u64(7);
        let now = to_seconds(Timestamp::from_second(1_767_225_600).unwrap());
        let account_id: AccountId = "acme".parse().unwrap();
        for family in Family::ALL {
            let text = PlainKey::generate(CredentialKind::Key(family, Mode::Test), &mut rng);
            let id = KeyId::new(now, &mut rng);
            let bare = ApiKey::new(id, account_id.clone(), &text, (family, Mode::Test), now);
            let full = ApiKey {
                application_id: "0198c0de-0000-7000-8000-000000000001".parse().ok(),
                name: "Checkout".to_owned(),
                restrictions: Restrictions {
                    scopes: vec![Scope::LINKS_READ, Scope::named("orders:write".to_owned())],
                    merchants: Some(vec!["m_1".to_owned()]),
                    features: Some(Feature::ALL.to_vec()),
                    allowed_ips: IpList::parse(["203.0.113.0/24", "2001:db8::/32"]).ok(),
                    rate_limit: RateLimit::new(100, 60).ok(),
                    expires_at: Some(now),
                },
                metadata: Metadata::parse(r#"{"b":1.0,"a":"x"}"#).ok(),
                created_by: Some(id),
                rotated_from: Some(id),
                ..bare.clone()
            };
            for key in [bare, full] {
                let created = CreatedKey {
                    key,
                    text: text.clone(),
                };
                let json = serde_json::to_vec(&CreatedKey::snapshot(&created)).unwrap();
                let restored = CreatedKey::restore(serde_json::from_slice(&json).unwrap()).unwrap();
                assert_eq!(restored.key, created.key);
                assert_eq!(restored.text.digest(), created.text.digest());
                let id = <KeyId as Recorded<CreatedKey>>::snapshot(&created);
                assert!(!id.contains(created.text.expose()));
                assert_eq!(
                    <KeyId as Recorded<CreatedKey>>::restore(id),
                    Some(created.key.id)
                );
            }
        }
    }

    #[test]
    fn record_without_a_key_is_not_restored() {
        let mut rng = StdRng::seed_from_u64(7);
        let now = Timestamp::UNIX_EPOCH;
        let text = PlainKey::generate(CredentialKind::Key(Family::Commerce, Mode::Test), &mut rng);
        let id = KeyId::new(now, &mut rng);
        let key = ApiKey::new(
            id,
            "acme".parse().unwrap(),
            &text,
            (Family::Commerce, Mode::Test),
            now,
        );
        let snapshot = CreatedKey::snapshot(&CreatedKey { key, text });
        let json = serde_json::to_value(snapshot).unwrap();
        for (field, value) in [
            ("text", "canary"),
            ("id", "canary"),
            ("account_id", "a b"),
            ("created_by", "canary"),
        ] {
            let mut changed = json.clone();
            changed[field] = value.into();
            assert!(
                CreatedKey::restore(serde_json::from_value(changed).unwrap()).is_none(),
                "{field}"
            );
        }
    }
}
