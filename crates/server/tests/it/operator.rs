//! Operations for operators: accounts and service keys.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    assert_response,
    support::{App, each_backend},
};

#[actix_web::test]
async fn account_exists_without_creation_and_has_a_model() {
    each_backend(async |app: &App| {
        let operator = app.operator();
        assert_response!(app.get("/accounts/acme").bearer(&operator).await, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        {
          "id": "acme",
          "operating_model": "primary_merchant"
        }
        "#);
        let put = |model| {
            app.put("/accounts/acme", json!({"operating_model": model}))
                .bearer(&operator)
        };
        for model in [
            "platform",
            "ecosystem",
            "managed_ecosystem",
            "managed_ecosystem",
            "primary_merchant",
        ] {
            let expected = json!({"id": "acme", "operating_model": model});
            assert_eq!(put(model).await.json(), expected);
            assert_eq!(
                app.get("/accounts/acme").bearer(&operator).await.json(),
                expected
            );
        }
        assert_eq!(
            app.get("/accounts/globex").bearer(&operator).await.json()["operating_model"],
            "primary_merchant"
        );
        assert_eq!(
            app.get("/accounts/user%40acme.example")
                .bearer(&operator)
                .await
                .json()["id"],
            "user@acme.example"
        );
    })
    .await;
}

#[actix_web::test]
async fn invalid_account_is_400_and_malformed_id_404() {
    each_backend(async |app: &App| {
        let operator = app.operator();
        let models = "must be one of primary_merchant, platform, ecosystem, managed_ecosystem";
        for (body, error) in [
            (json!({}), "/operating_model is required".to_owned()),
            (
                json!({"operating_model": null}),
                "/operating_model must be a string".to_owned(),
            ),
            (
                json!({"operating_model": {"platform": null}}),
                "/operating_model must be a string".to_owned(),
            ),
            (
                json!({"operating_model": "Platform"}),
                format!("/operating_model {models}"),
            ),
            (
                json!({"operating_model": "platform", "id": "x"}),
                "/id is unknown".to_owned(),
            ),
        ] {
            let reply = app
                .put("/accounts/acme", body.clone())
                .bearer(&operator)
                .await;
            assert_eq!((reply.status, reply.errors()), (400, vec![error]), "{body}");
        }
        for id in ["a%20b", "a%2Fb", "%C3%A9", &"x".repeat(129), "a%00"] {
            let path = format!("/accounts/{id}");
            let put = app
                .put(&path, json!({"operating_model": "platform"}))
                .bearer(&operator)
                .await;
            assert_eq!(
                (put.status, put.code().as_str()),
                (404, "not_found"),
                "{id}"
            );
            assert_eq!(app.get(&path).bearer(&operator).await.status, 404, "{id}");
        }
        assert_eq!(
            app.get("/accounts/acme").bearer(&operator).await.json()["operating_model"],
            "primary_merchant"
        );
    })
    .await;
}

#[actix_web::test]
async fn service_key_is_returned_once_and_listed_newest_first() {
    each_backend(async |app: &App| {
        let operator = app.operator();
        assert_eq!(app.get("/service-keys").bearer(&operator).await.body, "[]");
        let created = app
            .post("/service-keys", json!({"name": " checkout gateway "}))
            .bearer(&operator)
            .await;
        assert_response!(created, @r#"
        201
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00590KP5CNGK0J4VFP

        {
          "id": "019b76da-a800-7ccf-84ca-a8cd7b63c7cb",
          "name": "checkout gateway",
          "key": "tks_(32)",
          "created_at": 1767225600
        }
        "#);
        let text = created.json()["key"].as_str().unwrap().to_owned();
        assert_eq!((text.len(), &text[..4]), (36, "tks_"));
        app.clock.advance(Duration::from_secs(1));
        app.service_key().await;
        let list = app.get("/service-keys").bearer(&operator).await;
        assert!(!list.body.contains(&text));
        assert_response!(list, @r#"
        200
        cache-control: no-store
        content-type: application/json
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNAZ80QB6HDPBZM4AWR0Z

        [
          {
            "id": "019b76da-abe8-7cee-941f-6a00f65f1e53",
            "name": "gateway",
            "last4": "NsyM",
            "created_at": 1767225601,
            "revoked_at": null
          },
          {
            "id": "019b76da-a800-7ccf-84ca-a8cd7b63c7cb",
            "name": "checkout gateway",
            "last4": "QP8n",
            "created_at": 1767225600,
            "revoked_at": null
          }
        ]
        "#);
        for (body, error) in [
            (json!({}), "/name is required"),
            (json!({"name": " "}), "/name must have 1 to 100 characters"),
            (
                json!({"name": "x".repeat(101)}),
                "/name must have 1 to 100 characters",
            ),
            (
                json!({"name": "a\nb"}),
                "/name must not contain control characters",
            ),
            (json!({"name": "a", "key": "tks_mine"}), "/key is unknown"),
        ] {
            let reply = app
                .post("/service-keys", body.clone())
                .bearer(&operator)
                .await;
            assert_eq!(
                (reply.status, reply.errors()),
                (400, vec![error.to_owned()]),
                "{body}"
            );
        }
        assert_eq!(
            app.get("/service-keys")
                .bearer(&operator)
                .await
                .json()
                .as_array()
                .map(Vec::len),
            Some(2)
        );
    })
    .await;
}

#[actix_web::test]
async fn revoked_service_key_is_rejected_immediately() {
    each_backend(async |app: &App| {
        let operator = app.operator();
        let (first, second) = (app.service_key().await, app.service_key().await);
        let verify = |key: &str| app.post("/verify", json!({"key": "x"})).bearer(key);
        for _ in 0..2 {
            assert_eq!(
                (
                    verify(&first.text).await.status,
                    verify(&second.text).await.status
                ),
                (200, 200)
            );
        }
        let path = format!("/service-keys/{}", first.id);
        let reply = app.delete(&path).bearer(&operator).await;
        assert_eq!((reply.status, reply.body.as_str()), (204, ""));
        for path in ["/verify", "/verify/batch", "/introspect"] {
            let rejected = app
                .post(path, json!({"key": "x"}))
                .bearer(&first.text)
                .await;
            assert_eq!(
                (rejected.status, rejected.code().as_str()),
                (401, "invalid_api_key"),
                "{path}"
            );
        }
        assert_eq!(verify(&second.text).await.status, 200);
        let revoked_at = async || {
            let list = app.get("/service-keys").bearer(&operator).await.json();
            let row = list
                .as_array()
                .unwrap()
                .iter()
                .find(|row| row["id"] == first.id)
                .cloned()
                .unwrap();
            row["revoked_at"].clone()
        };
        let at = revoked_at().await;
        assert_ne!(at, Value::Null);
        app.clock.advance(Duration::from_secs(5));
        assert_eq!(app.delete(&path).bearer(&operator).await.status, 204);
        assert_eq!(revoked_at().await, at);
    })
    .await;
}

#[actix_web::test]
async fn unknown_or_malformed_service_key_is_404() {
    each_backend(async |app: &App| {
        let operator = app.operator();
        let application = app
            .application(&app.management_token("acme"), "Web Store")
            .await;
        for id in [
            "0198c0de-0000-7000-8000-000000000001",
            "x",
            "%00",
            application.as_str(),
        ] {
            let reply = app
                .delete(&format!("/service-keys/{id}"))
                .bearer(&operator)
                .await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (404, "not_found"),
                "{id}"
            );
        }
    })
    .await;
}
