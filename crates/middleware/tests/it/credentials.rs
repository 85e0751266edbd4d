//! Credentials by their form: the same responses as the server's gateway routes give.

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
        let told = apps.ask("GET", "/any", &headers).await;
        assert_eq!(told.status, form.for_key.status, "{}: {told:?}", form.name);
        assert_eq!(
            told.header("www-authenticate"),
            form.for_key.challenge().as_deref(),
            "{}",
            form.name
        );
        if told.status != 200 {
            let body: serde_json::Value = serde_json::from_str(&told.body).expect("a problem");
            let found = (body["code"].as_str(), body["detail"].as_str());
            assert_eq!(
                found,
                (Some(form.for_key.code), Some(form.for_key.detail)),
                "{}",
                form.name
            );
        }
        // An optional key may be absent, and must not be wrong.
        let optional = apps.ask("GET", "/optional", &headers).await;
        let absent = form.for_key.detail
            == "Send an API key in the Authorization header with the scheme Bearer.";
        assert_eq!(
            optional.status,
            if absent { 200 } else { form.for_key.status },
            "{}",
            form.name
        );
    }
    let jwt = apps
        .ask(
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
