//! Service keys, which resource servers present. They belong to the operator, not to an account, so they are not in an
//! account's audit log; the server's log records who (`by`) created and revoked them.

use serde::{Deserialize, Serialize};
use tollkey_core::{
    PlainKey, Preconditions, Problem, ServiceKey, ServiceKeyId, Timestamp, api_key::Transition,
    key_format::CredentialKind,
};

use tollkey_store::Owner;

use crate::{
    idempotency::{self, CreationPermit, Outcome, Recorded, Secret},
    service::Service,
};

const LISTED: u32 = 1000;

/// A service key that was created, with its full text for the one response that contains it.
#[derive(Debug, Clone)]
pub struct CreatedServiceKey {
    pub key: ServiceKey,
    pub text: PlainKey,
}

fn mint(service: &Service, name: String) -> CreatedServiceKey {
    let now = service.clock.now();
    let (id, text) = service.random.with(|rng| {
        (
            ServiceKeyId::new(now, rng),
            PlainKey::generate(CredentialKind::ServiceKey, rng),
        )
    });
    let key = ServiceKey {
        id,
        name,
        last4: text.last4(),
        created_at: now,
        revoked_at: None,
    };
    CreatedServiceKey { key, text }
}

fn log_creation(id: ServiceKeyId, by: &str) {
    tracing::info!(service_key = %id, by, "service key created");
}

/// Creates a service key, without an idempotency record.
pub async fn create(
    service: &Service,
    by: &str,
    name: String,
) -> Result<CreatedServiceKey, Problem> {
    let created = mint(service, name);
    let (key, digest) = (created.key.clone(), created.text.digest());
    service
        .change(Owner::Operator, move |tx| {
            Ok(tx.insert_service_key(&key, &digest)?)
        })
        .await?;
    log_creation(created.key.id, by);
    Ok(created)
}

/// Like [`create`], for a request that can have an Idempotency-Key.
pub async fn create_once<R: Recorded<CreatedServiceKey> + Send + 'static>(
    service: &Service,
    by: &str,
    name: String,
    creating: CreationPermit<R>,
) -> Result<Outcome<CreatedServiceKey, R>, Problem> {
    let created = mint(service, name);
    let digest = created.text.digest();
    let outcome = idempotency::create(service, Owner::Operator, creating, move |tx| {
        tx.insert_service_key(&created.key, &digest)?;
        Ok(created)
    })
    .await?;
    if let Outcome::Created(created) = &outcome {
        log_creation(created.key.id, by);
    }
    Ok(outcome)
}

#[derive(Serialize, Deserialize)]
pub struct Snapshot {
    id: String,
    name: String,
    created_at: Timestamp,
    text: Secret,
}

/// A replay returns the service key as it was created.
impl Recorded<Self> for CreatedServiceKey {
    type Snapshot = Snapshot;

    fn snapshot(created: &Self) -> Snapshot {
        Snapshot {
            id: created.key.id.to_string(),
            name: created.key.name.clone(),
            created_at: created.key.created_at,
            text: Secret::new(created.text.expose()),
        }
    }

    fn restore(snapshot: Snapshot) -> Option<Self> {
        let text = PlainKey::parse(snapshot.text.expose())?;
        let key = ServiceKey {
            id: snapshot.id.parse().ok()?,
            name: snapshot.name,
            last4: text.last4(),
            created_at: snapshot.created_at,
            revoked_at: None,
        };
        Some(Self { key, text })
    }
}

/// A replay returns the ID only.
impl Recorded<CreatedServiceKey> for ServiceKeyId {
    type Snapshot = String;

    fn snapshot(created: &CreatedServiceKey) -> String {
        created.key.id.to_string()
    }

    fn restore(snapshot: String) -> Option<Self> {
        snapshot.parse().ok()
    }
}

/// The key may be revoked. Fails with `not_found`.
pub async fn get(service: &Service, id: ServiceKeyId) -> Result<ServiceKey, Problem> {
    service
        .read(Owner::Operator, move |db| db.service_key(&id))
        .await?
        .ok_or_else(Problem::not_found)
}

/// Newest first.
pub async fn list(service: &Service) -> Result<Vec<ServiceKey>, Problem> {
    service
        .read(Owner::Operator, |db| db.service_keys(LISTED))
        .await
}

/// Revokes the service key on every replica, and returns it. Idempotent: preconditions apply only while it is not revoked.
/// Fails with `not_found` or `precondition_failed`.
pub async fn revoke(
    service: &Service,
    by: &str,
    id: ServiceKeyId,
    preconditions: Preconditions,
) -> Result<ServiceKey, Problem> {
    let now = service.clock.now();
    let (key, transition) = service
        .ensure(Owner::Operator, move |tx| {
            let before = tx.service_key(&id)?.ok_or_else(Problem::not_found)?;
            if before.revoked_at.is_none() {
                preconditions.check(before.entity_tag())?;
            }
            let transition = tx.revoke_service_key(&id, now)?;
            let transition = transition.ok_or_else(Problem::not_found)?;
            let revoked = tx.service_key(&id)?.ok_or_else(Problem::not_found)?;
            Ok((revoked, transition))
        })
        .await?;
    if transition == Transition::Changed {
        tracing::info!(service_key = %id, by, "service key revoked");
    }
    Ok(key)
}
