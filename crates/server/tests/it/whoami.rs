//! `/whoami`: what a key can read about itself, and how it can revoke itself.

use std::time::Duration;

use serde_json::json;
use tollkey_core::{
    Clock as _, Family, IpList, Mode, RateLimit, Restrictions, Scope, feature::Feature,
};

use crate::{
    assert_response,
    support::{App, each_backend},
};

#[actix_web::test]
async fn whoami_returns_the_key_of_the_request() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let body =
            json!({"mode": "test", "scopes": ["links:read"], "expiresAt": "2100-01-01T00:00:00Z"});
        let key = app.key(&token, &application, body).await.text;
        assert_response!(app.get("/whoami").bearer(&key).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00PAEQWST1E1DC3WJS

        {
          "id": "019b76da-a800-7a88-a527-a819b062c680",
          "family": "application",
          "mode": "test",
          "status": "active",
          "account_id": "acme",
          "application_id": "019b76da-a800-7474-bdc5-e24d2a413b15",
          "name": "Checkout",
          "scopes": [
            "links:read"
          ],
          "merchants": null,
          "features": null,
          "created_at": 1767225600,
          "expires_at": 4102444800
        }
        "#);
        // The key is accepted in each of its headers, also by HEAD.
        let body = app.get("/whoami").bearer(&key).await.body;
        for call in [
            app.get("/whoami").header("x-api-key", &key),
            app.get("/whoami").header("X-Commerce-Api-Key", &key),
            app.get("/whoami").bearer(&format!("secret-token:{key}")),
        ] {
            assert_eq!(call.await.body, body);
        }
        let head = app.call("HEAD", "/whoami").bearer(&key).await;
        assert_eq!((head.status, head.body.as_str()), (200, ""));
        assert_eq!(
            head.header("content-length"),
            Some(body.len().to_string().as_str())
        );
    })
    .await;
}

#[actix_web::test]
async fn publishable_key_reads_only_id_family_mode_and_status() {
    each_backend(async |app: &App| {
        let key = app
            .insert_key("acme", Family::Publishable, Mode::Live)
            .await;
        assert_response!(app.get("/whoami").bearer(&key).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00REDGZ142A0ZS1JJ3

        {
          "id": "019b76da-a800-7878-88e1-d9d87054ed4c",
          "family": "publishable",
          "mode": "live",
          "status": "active"
        }
        "#);
    })
    .await;
}

#[actix_web::test]
async fn whoami_ignores_only_routes_merchants_and_scopes() {
    each_backend(async |app: &App| {
        let insert = async |restrictions| {
            app.insert_key_with("acme", Family::Commerce, Mode::Live, restrictions)
                .await
        };
        let bound = Restrictions {
            scopes: vec![Scope::LINKS_READ],
            merchants: Some(vec!["m_1".to_owned()]),
            features: Some(vec![Feature::TokensList]),
            ..Restrictions::default()
        };
        let shown = app
            .get("/whoami")
            .bearer(&insert(bound.clone()).await)
            .await
            .json();
        assert_eq!(
            (&shown["merchants"], &shown["features"]),
            (&json!(["m_1"]), &json!(["tokens.list"]))
        );

        let rate_limit = RateLimit::new(1, 60).ok();
        let limited = insert(Restrictions {
            rate_limit,
            ..bound.clone()
        })
        .await;
        assert_eq!(app.get("/whoami").bearer(&limited).await.status, 200);
        let denied = app.get("/whoami").bearer(&limited).await;
        assert_eq!(
            (
                denied.status,
                denied.code().as_str(),
                denied.header("retry-after")
            ),
            (429, "rate_limited", Some("60"))
        );

        let from_loopback = insert(Restrictions {
            allowed_ips: IpList::parse(["127.0.0.0/8"]).ok(),
            ..bound.clone()
        })
        .await;
        let from_client = insert(Restrictions {
            allowed_ips: IpList::parse(["203.0.113.0/24"]).ok(),
            ..bound.clone()
        })
        .await;
        for (key, hops, status) in [
            // Loopback is a trusted proxy, so without a valid forwarded address the client's address is unknown.
            (&from_loopback, None, 403),
            (&from_loopback, Some("127.0.0.1"), 403),
            (&from_loopback, Some("203.0.113.9"), 403),
            (&from_client, None, 403),
            (&from_client, Some("203.0.113.9"), 200),
            (&from_client, Some("\"203.0.113.9:4711\""), 200),
            (&from_client, Some("203.0.113.9, 198.51.100.1"), 403),
            (&from_client, Some("nonsense"), 403),
        ] {
            let call = app.get("/whoami").bearer(key);
            let reply = match hops {
                Some(hops) => call.header("x-forwarded-for", hops).await,
                None => call.await,
            };
            assert_eq!(reply.status, status, "{hops:?}");
            assert!(status == 200 || reply.code() == "ip_not_allowed");
        }

        let expiring = insert(Restrictions {
            expires_at: Some(app.clock.now() + Duration::from_secs(1)),
            ..bound
        })
        .await;
        assert_eq!(app.get("/whoami").bearer(&expiring).await.status, 200);
        app.clock.advance(Duration::from_secs(1));
        assert_eq!(app.get("/whoami").bearer(&expiring).await.code(), "expired");
        let text = app.generate_key(Family::Secret, Mode::Live);
        let suspended = app
            .insert("acme", &text, |key| key.suspended_at = Some(key.created_at))
            .await;
        assert_eq!(
            app.get("/whoami").bearer(&suspended.text).await.code(),
            "suspended"
        );
    })
    .await;
}

#[actix_web::test]
async fn every_key_except_publishable_can_revoke_itself() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let created = app.key(&token, &application, json!({})).await;
        let commerce = app
            .insert(
                "acme",
                &app.generate_key(Family::Commerce, Mode::Test),
                |_| (),
            )
            .await;
        let secret = app
            .insert(
                "acme",
                &app.generate_key(Family::Secret, Mode::Live),
                |_| (),
            )
            .await;
        let kept = app.insert_key("acme", Family::Secret, Mode::Live).await;
        for key in [&created, &commerce, &secret] {
            assert_eq!(app.code(&key.text).await, "valid");
            let reply = app.delete("/whoami").bearer(&key.text).await;
            assert_eq!((reply.status, reply.body.as_str()), (204, ""));
            assert_eq!(app.code(&key.text).await, "revoked");
            for method in ["GET", "DELETE"] {
                let reply = app.call(method, "/whoami").bearer(&key.text).await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (401, "invalid_api_key")
                );
            }
            let log = app
                .get(&format!(
                    "/audit-log?action=api_key.revoked&target_id={}",
                    key.id
                ))
                .bearer(&token)
                .await
                .json();
            assert_eq!(log.as_array().map(Vec::len), Some(1));
            assert_eq!(log[0]["actor"], json!({"type": "api_key", "id": key.id}));
            assert_eq!(
                log[0]["changes"],
                json!({"status": "revoked", "reason": "self_revoked"})
            );
        }
        assert_eq!(app.code(&kept).await, "valid");
        let row = app
            .get(&format!("/applications/{application}/api-keys"))
            .bearer(&token)
            .await
            .json()["items"][0]
            .clone();
        assert_eq!(
            (&row["status"], &row["revokedReason"]),
            (&json!("revoked"), &json!("self_revoked"))
        );

        let publishable = app
            .insert_key("acme", Family::Publishable, Mode::Live)
            .await;
        let reply = app.delete("/whoami").bearer(&publishable).await;
        assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"));
        assert_eq!(app.get("/whoami").bearer(&publishable).await.status, 200);
    })
    .await;
}
