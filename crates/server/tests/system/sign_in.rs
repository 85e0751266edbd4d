//! The log and the commands of sign-ins to the dashboard.

use serde_json::{Value, json};
use tollkey_store::testing::backends;

use self::provider::{ClientAuth, Provider, SECRET, parameter};
use crate::{
    binary::{Tollkey, token_of},
    support::{
        Call, TOKEN_SIGN_IN,
        sign_in::{SESSION, StartedSignIn, cookie, keys_at, sign_in_at, started},
    },
};

#[allow(dead_code)] // the tests in `it` use the rest
#[path = "../it/sign_in/provider.rs"]
mod provider;

impl StartedSignIn {
    fn state(&self) -> String {
        parameter(&self.url, "state")
    }
}

#[actix_web::test]
async fn sign_in_secrets_are_not_logged_at_trace() {
    let provider = Provider::start().await;
    let database = backends().into_iter().next().expect("a backend");
    let mut tollkey = Tollkey::on(&database).with("TOLLKEY_LOG", "trace");
    for (name, value) in provider.settings() {
        tollkey = tollkey.with(name, value);
    }
    let server = tollkey.serve().await;
    let mut canaries = vec![
        SECRET.to_owned(),
        "canary%3Asecret".to_owned(),
        "canary-access-token".to_owned(),
    ];
    let now = jiff::Timestamp::now().as_second();
    for outcome in ["signed in", "another nonce", "an outage", "declined"] {
        let started = started(
            &server
                .get("/dashboard/sign-in/oidc?next=/dashboard/keys")
                .await,
        );
        let mut claims = provider.claims(&started.url, now);
        let cookie_value = started.cookie.split_once('=').unwrap().1;
        canaries.extend(cookie_value.split('.').take(3).map(str::to_owned));
        canaries.push(parameter(&started.url, "code_challenge"));
        if outcome == "another nonce" {
            claims["nonce"] = json!("canary-of-the-nonce");
        }
        let id_token = provider.key.token(&claims);
        canaries.extend(id_token.split('.').skip(1).map(str::to_owned));
        let code = provider.sign_in(&started.url, Some(id_token));
        canaries.push(code.clone());
        let sent_back = if outcome == "declined" {
            "error=access_denied&error_description=canary-text"
        } else {
            "x=1"
        };
        if outcome == "an outage" {
            // The error description repeats the request.
            provider.inner().client = ClientAuth::Public;
        }
        let code = if outcome == "declined" {
            String::new()
        } else {
            format!("&code={code}")
        };
        let path = format!(
            "/dashboard/sign-in/callback?{sent_back}{code}&state={}",
            started.state()
        );
        let back = server.get(&path).header("cookie", &started.cookie).await;
        match cookie(&back, SESSION) {
            Some(session) => {
                assert_eq!(outcome, "signed in");
                assert_eq!(
                    server
                        .get("/dashboard/keys")
                        .header("cookie", &session)
                        .await
                        .status,
                    200
                );
                canaries.push(session.split_once('=').unwrap().1.to_owned());
            }
            None => assert!(
                outcome != "signed in" && back.status == 303,
                "{outcome}: {back}"
            ),
        }
    }
    canaries.extend(["canary-of-the-nonce".to_owned(), "canary-text".to_owned()]);
    assert!(
        provider
            .inner()
            .requests
            .iter()
            .any(|(path, credentials, _)| path == "/token" && !credentials.is_empty())
    );
    // The Authorization header of the client.
    let basic = provider
        .inner()
        .requests
        .iter()
        .find_map(|(_, it, _)| it.strip_prefix("Basic ").map(str::to_owned));
    canaries.push(basic.expect("credentials"));
    let finished = server.stop().await;
    assert!(
        finished.stderr.contains("TRACE")
            && finished
                .stderr
                .contains("sign-in with OpenID Connect failed"),
        "logging is at TRACE"
    );
    for canary in canaries {
        assert!(canary.len() > 8, "{canary:?} is too short for a canary");
        for (name, text) in [("stderr", &finished.stderr), ("stdout", &finished.stdout)] {
            let line = text.lines().find(|line| line.contains(&canary));
            assert_eq!(line, None, "{canary} in {name}");
        }
    }
}

#[actix_web::test]
async fn failed_sign_in_is_logged_once_with_the_claim() {
    let provider = Provider::start().await;
    let database = backends().into_iter().next().expect("a backend");
    let mut tollkey = Tollkey::on(&database).with("TOLLKEY_LOG_FORMAT", "json");
    for (name, value) in provider.settings() {
        tollkey = tollkey.with(name, value);
    }
    let server = tollkey.serve().await;
    let now = jiff::Timestamp::now().as_second();
    let edits: &[(&str, Value, &str, Option<&str>)] = &[
        ("nonce", json!("canary"), "nonce", Some("nonce")),
        ("azp", json!("canary"), "authorized-party", Some("azp")),
        ("aud", json!("canary"), "audience", Some("aud")),
        ("sub", json!(["canary"]), "claim-sub", Some("sub")),
        (
            "account_id",
            json!({"canary": 1}),
            "account-type",
            Some("account_id"),
        ),
        (
            "account_id",
            json!("can ary"),
            "account-form",
            Some("account_id"),
        ),
    ];
    for (claim, value, ..) in edits {
        let started = started(&server.get("/dashboard/sign-in/oidc").await);
        let mut claims = provider.claims(&started.url, now);
        claims[*claim] = value.clone();
        let code = provider.sign_in(&started.url, Some(provider.key.token(&claims)));
        let path = format!(
            "/dashboard/sign-in/callback?code={code}&state={}",
            started.state()
        );
        assert_eq!(
            server
                .get(&path)
                .header("cookie", &started.cookie)
                .await
                .status,
            303
        );
    }
    // Failures without an ID token.
    let mut expected: Vec<_> = edits
        .iter()
        .map(|(.., failure, claim)| (*failure, *claim))
        .collect();
    for (sent, failure) in [
        ("code=x", "unknown"),
        ("error=access_denied", "declined"),
        ("error=can%20ary", "declined"),
    ] {
        let started = started(&server.get("/dashboard/sign-in/oidc").await);
        let state = if failure == "unknown" {
            "x".to_owned()
        } else {
            started.state()
        };
        let path = format!("/dashboard/sign-in/callback?{sent}&state={state}");
        assert_eq!(
            server
                .get(&path)
                .header("cookie", &started.cookie)
                .await
                .status,
            303
        );
        expected.push((failure, None));
    }
    let finished = server.stop().await;
    let lines: Vec<Value> = finished
        .stderr
        .lines()
        .filter(|line| line.contains("sign-in with OpenID Connect failed"))
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let seen: Vec<_> = lines
        .iter()
        .map(|line| (line["code"].as_str().unwrap(), line["claim"].as_str()))
        .collect();
    assert_eq!(seen, expected, "{finished}");
    for line in &lines {
        assert_eq!(line["level"], "WARN", "{line}");
        assert!(
            line["reason"]
                .as_str()
                .is_some_and(|reason| reason.len() > 10),
            "{line}"
        );
        assert!(
            !line.to_string().contains("canary") && !line.to_string().contains("can ary"),
            "{line}"
        );
    }
}

#[actix_web::test]
async fn session_end_command_ends_the_selected_sessions() {
    for database in backends() {
        let tollkey = Tollkey::on(&database).with(TOKEN_SIGN_IN.0, TOKEN_SIGN_IN.1);
        let server = tollkey.serve().await;
        let token = |account, subject: &str| token_of(subject, Some(account), &[]);
        let mut sessions = Vec::new();
        for (account, subject) in [
            ("acme", "ada"),
            ("acme", "bob"),
            ("globex", "ada"),
            ("umbrella", "cy"),
        ] {
            sessions.push(sign_in_at(server.address, &token(account, subject)).await);
        }
        let seen = async || {
            let mut seen = Vec::new();
            for session in &sessions {
                seen.push(keys_at(server.address, session).await == 200);
            }
            seen
        };
        let end = ["session", "end"];
        for arguments in [
            &[][..],
            &["--all", "--account", "acme"],
            &["--all", "--subject", "ada"],
        ] {
            let finished = tollkey.run(&[&end, arguments].concat()).await;
            assert!(!finished.success(), "{arguments:?}: {finished}");
        }
        assert_eq!(seen().await, [true, true, true, true]);
        for (arguments, output, left) in [
            (
                &["--account", "nobody"][..],
                "sessions ended: 0",
                [true, true, true, true],
            ),
            (
                &["--account", "acme", "--subject", "bob"],
                "sessions ended: 1",
                [true, false, true, true],
            ),
            (
                &["--subject", "ada"],
                "sessions ended: 2",
                [false, false, false, true],
            ),
            (
                &["--all"],
                "sessions ended: 1",
                [false, false, false, false],
            ),
        ] {
            assert_eq!(
                tollkey.output_of(&[&end, arguments].concat()).await,
                output,
                "{arguments:?}"
            );
            assert_eq!(seen().await, left, "{arguments:?}");
        }
        server.stop().await;
    }
}

#[actix_web::test]
async fn sign_in_and_sign_out_are_logged() {
    let database = backends().into_iter().next().expect("a backend");
    let server = Tollkey::on(&database)
        .with(TOKEN_SIGN_IN.0, TOKEN_SIGN_IN.1)
        .with("TOLLKEY_LOG", "info")
        .serve()
        .await;
    let session = sign_in_at(
        server.address,
        &token_of("ada", Some("acme"), &["operator"]),
    )
    .await;
    let out = Call::new(server.address, "POST", "/dashboard/sign-out")
        .header("sec-fetch-site", "same-origin");
    assert_eq!(out.header("cookie", &session).await.status, 303);
    let finished = server.stop().await;
    for (text, values) in [
        (
            "signed in to the dashboard",
            &["ada", "acme", "operator"][..],
        ),
        ("signed out of the dashboard", &["ada"]),
    ] {
        let line = finished
            .stderr
            .lines()
            .find(|line| line.contains(text))
            .unwrap_or_else(|| panic!("{finished}"));
        assert!(values.iter().all(|value| line.contains(value)), "{line}");
    }
    assert!(
        !finished.stderr.contains(session.split_once('=').unwrap().1),
        "{finished}"
    );
}
