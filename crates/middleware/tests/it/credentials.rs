//! Malformed and other credentials get the same responses as from the gateway routes of the server.

use tollkey_core::{Family, Mode, Timestamp};
use tollkey_middleware::testing::TestKeys;

use crate::{apps::Apps, credential_forms::forms};

#[tokio::test(flavor = "multi_thread")]
async fn each_form_of_a_credential_has_its_response() {
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Test, |_| {});
    let revoked = keys.add(Family::Commerce, Mode::Test, |key| {
        key.revoked_at = Some(Timestamp::UNIX_EPOCH)
    });
    let service_key = format!("tks_{}", "EXAMPLE0".repeat(4));
    let apps = Apps::start(&keys.guard().await.expect("a guard"));
    for form in forms(&key, &revoked, &service_key) {
        let headers: Vec<(&str, &str)> = form
            .headers
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let response = apps.send("GET", "/any", &headers).await;
        assert_eq!(
            response.status, form.for_key.status,
            "{}: {response:?}",
            form.name
        );
        assert_eq!(
            response.header("www-authenticate"),
            form.for_key.challenge().as_deref(),
            "{}",
            form.name
        );
        if response.status != 200 {
            let body: serde_json::Value = serde_json::from_str(&response.body).expect("a problem");
            let found = (body["code"].as_str(), body["detail"].as_str());
            assert_eq!(
                found,
                (Some(form.for_key.code), Some(form.for_key.detail)),
                "{}",
                form.name
            );
        }
        // An optional key may be missing, but an invalid one is rejected.
        let optional = apps.send("GET", "/optional", &headers).await;
        let is_missing = form.for_key.detail
            == "Send an API key in the Authorization header with the scheme Bearer.";
        assert_eq!(
            optional.status,
            if is_missing { 200 } else { form.for_key.status },
            "{}",
            form.name
        );
    }
    let jwt = apps
        .send(
            "GET",
            "/any",
            &[("x-api-key", "eyEXAMPLE.eyEXAMPLE.EXAMPLE")],
        )
        .await;
    assert!(
        jwt.body
            .contains("The credential is a token (JWT). Send an API key instead."),
        "{jwt:?}"
    );
}
