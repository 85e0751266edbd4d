//! Tests of decisions about looked-up and cached keys: every denial is returned, and expirations are compared with the
//! time of the request.

use std::time::Duration;

use tollkey_core::{
    AccessRequest, Catalogue, Clock, Denial, IpList, KeyContext, Mode, OperatingModel, RateLimit,
    RequestPath, RouteBase, Viewer, feature::Feature,
};
use tollkey_verifier::testing::{ManualClock, MemorySource, account, record};

use crate::world::{World, leaseless, text};

/// Verifies key 0 by a look-up and then from the cache, and checks that both outcomes are the same.
async fn outcome(
    change: impl FnOnce(&mut KeyContext),
    access: AccessRequest<'_>,
) -> Result<(), Denial> {
    let world = World::new(0).await;
    let mut changed = record(&text(0));
    change(&mut changed);
    world.source.put(&text(0), changed);
    let looked_up = world.one.verifier.verify(&text(0), &access).await.unwrap();
    let cached = world.one.verifier.verify(&text(0), &access).await.unwrap();
    assert_eq!(world.source.finds(), 1);
    if looked_up.outcome != Err(Denial::UnknownKey) {
        assert_eq!(
            looked_up.record.unwrap().key.id,
            cached.record.as_ref().unwrap().key.id
        );
    }
    assert_eq!(looked_up.outcome, cached.outcome);
    assert_eq!(cached.allowed().is_some(), cached.outcome.is_ok());
    cached.outcome
}

#[tokio::test(start_paused = true)]
async fn key_without_restrictions_is_allowed() {
    assert_eq!(outcome(|_| (), AccessRequest::default()).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn every_denial_is_returned() {
    let now = ManualClock::default().now();
    let none = AccessRequest::default();
    assert_eq!(
        outcome(|it| it.key.revoked_at = Some(now), none).await,
        Err(Denial::Revoked)
    );
    assert_eq!(
        outcome(|it| it.key.restrictions.expires_at = Some(now), none).await,
        Err(Denial::Expired)
    );
    assert_eq!(
        outcome(|it| it.key.suspended_at = Some(now), none).await,
        Err(Denial::Suspended)
    );
    assert_eq!(
        outcome(|it| it.application_enabled = false, none).await,
        Err(Denial::ApplicationDisabled)
    );
    let live = AccessRequest {
        mode: Some(Mode::Live),
        ..none
    };
    assert_eq!(outcome(|_| (), live).await, Err(Denial::WrongMode));
    let elsewhere = AccessRequest {
        client_ip: Some([192, 0, 2, 1].into()),
        ..none
    };
    let allowed_ips_only = |it: &mut KeyContext| {
        it.key.restrictions.allowed_ips = IpList::parse(["203.0.113.0/24"]).ok()
    };
    assert_eq!(
        outcome(allowed_ips_only, elsewhere).await,
        Err(Denial::IpNotAllowed)
    );
    let scoped = |it: &mut KeyContext| {
        it.operating_model = OperatingModel::Ecosystem;
        it.key.restrictions.features = Some(vec![Feature::TokensList]);
    };
    let path = Some(RequestPath::new("/api/forward", &RouteBase::default()));
    assert_eq!(
        outcome(
            scoped,
            AccessRequest {
                method: Some("POST"),
                path,
                ..none
            }
        )
        .await,
        Err(Denial::RouteNotAllowed)
    );
    let path = Some(RequestPath::new("/api/tokens", &RouteBase::default()));
    assert_eq!(
        outcome(
            scoped,
            AccessRequest {
                method: Some("GET"),
                path,
                ..none
            }
        )
        .await,
        Ok(())
    );
    assert_eq!(
        outcome(
            |_| (),
            AccessRequest {
                merchant: Some("no merchant"),
                ..none
            }
        )
        .await,
        Err(Denial::MerchantNotAllowed)
    );
    let mut catalogue = Catalogue::default();
    catalogue.add("orders:read", false).unwrap();
    let scopes = catalogue.needed(["orders:read"]).unwrap();
    assert_eq!(
        outcome(|_| (), AccessRequest { scopes, ..none }).await,
        Err(Denial::InsufficientScope)
    );
    let once_a_minute = RateLimit::new(1, 60).ok();
    let world = World::new(0).await;
    let mut limited = record(&text(0));
    limited.key.restrictions.rate_limit = once_a_minute;
    world.source.put(&text(0), limited);
    assert_eq!(world.one.outcome(0).await, Ok(()));
    assert_eq!(world.one.outcome(0).await, Err(Denial::RateLimited));
}

#[tokio::test(start_paused = true)]
async fn key_that_the_viewer_may_not_see_is_unknown() {
    let (acme, other) = (account("acme"), account("other"));
    let viewer = |account_id, mode| AccessRequest {
        viewer: Some(Viewer { account_id, mode }),
        ..AccessRequest::default()
    };
    assert_eq!(
        outcome(|_| (), viewer(&acme, Some(Mode::Test))).await,
        Ok(())
    );
    assert_eq!(
        outcome(|_| (), viewer(&acme, Some(Mode::Live))).await,
        Err(Denial::UnknownKey)
    );
    assert_eq!(
        outcome(|_| (), viewer(&other, None)).await,
        Err(Denial::UnknownKey)
    );

    let world = World::new(1).await;
    for _ in 0..2 {
        let verdict = world
            .one
            .verifier
            .verify(&text(0), &viewer(&other, None))
            .await
            .unwrap();
        assert!(verdict.record.is_none() && verdict.rate.is_none() && verdict.allowed().is_none());
    }
    assert!(
        world.one.verifier.take_usage().is_empty(),
        "a verification for a viewer that may not see the key is not counted"
    );
}

#[tokio::test(start_paused = true)]
async fn malformed_key_is_unknown_without_a_look_up() {
    let world = World::new(1).await;
    world.source.set_down(true);
    let service_key = format!("tks_{}", "a".repeat(32));
    let spaced = format!(" {}", text(0));
    let twice = format!("secret-token:secret-token:{}", text(0));
    for presented in [
        "",
        "ck_test_short",
        "ck_test_",
        &service_key,
        &spaced,
        &twice,
        &text(0)[1..],
    ] {
        let verdict = world
            .one
            .verifier
            .verify(presented, &AccessRequest::default())
            .await
            .unwrap();
        assert_eq!(verdict.outcome, Err(Denial::UnknownKey), "{presented:?}");
    }
    assert_eq!(world.source.finds(), 0);
}

#[tokio::test(start_paused = true)]
async fn prefix_of_rfc_8959_is_accepted() {
    let world = World::new(1).await;
    let presented = format!("secret-token:{}", text(0));
    for _ in 0..2 {
        assert_eq!(
            world
                .one
                .verifier
                .verify(&presented, &AccessRequest::default())
                .await
                .unwrap()
                .outcome,
            Ok(())
        );
    }
    assert!(!world.one.looks_up(0).await, "it is the same key");
}

#[tokio::test(start_paused = true)]
async fn cached_key_expires_on_time() {
    let world = World::new(0).await;
    let mut expiring = record(&text(0));
    expiring.key.restrictions.expires_at = Some(world.clock.now() + Duration::from_secs(10));
    world.source.put(&text(0), expiring);
    assert_eq!(world.one.outcome(0).await, Ok(()));
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert_eq!(world.one.outcome(0).await, Ok(()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.one.outcome(0).await, Err(Denial::Expired));
    assert_eq!(world.source.finds(), 1, "it was verified from the cache");
}

#[tokio::test]
async fn expiration_follows_an_adjusted_wall_clock() {
    let (source, clock) = (MemorySource::default(), ManualClock::default());
    let mut expiring = record(&text(0));
    expiring.key.restrictions.expires_at = Some(clock.now() + Duration::from_secs(10));
    source.put(&text(0), expiring);
    let verifier = leaseless(&source, &clock).await;
    assert_eq!(
        verifier
            .verify(&text(0), &AccessRequest::default())
            .await
            .unwrap()
            .outcome,
        Ok(())
    );
    clock.set(clock.now() + Duration::from_secs(11));
    assert_eq!(
        verifier
            .verify(&text(0), &AccessRequest::default())
            .await
            .unwrap()
            .outcome,
        Err(Denial::Expired)
    );
}

#[tokio::test(start_paused = true)]
async fn debug_output_contains_no_key() {
    let world = World::new(1).await;
    let verdict = world.one.verify(0).await;
    let printed = format!(
        "{:?} {verdict:?} {:?}",
        world.one.verifier,
        world.one.verifier.take_usage()
    );
    assert!(!printed.contains(&text(0)));
}
