//! Tests of the conditions of development mode, its secret and its message.

use std::{fs, sync::Arc};

use clap::Command;
use tollkey_verifier::SystemClock;

use super::*;
use crate::{
    auth::jwt::TokenVerifier,
    config::{Options, UnknownVariable},
};

fn settings(flags: &[&str]) -> Settings {
    let command = Options::add_to(Command::new("tollkey").no_binary_name(true));
    let options = Options::from_matches(&command.get_matches_from(flags));
    Settings::resolve(&options, &|_| None, Path::new("no-such-file.toml")).unwrap()
}

fn on_file(directory: &Path) -> Settings {
    settings(&[
        "--database-url",
        &format!("sqlite://{}/keys.db", directory.display()),
    ])
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn enter(settings: &Settings) -> Result<DevMode, DevModeError> {
    DevMode::enter(settings, &Random::system())
        .map(|mode| mode.expect("development mode, because no key source is set"))
}

#[test]
fn development_mode_requires_sqlite_and_a_loopback_address() {
    for (flags, expected) in [
        (
            [
                "--listen",
                "0.0.0.0:80",
                "--database-url",
                "sqlite://:memory:",
            ],
            "0.0.0.0:80, which is not a loopback address",
        ),
        (
            ["--listen", "[::]:80", "--database-url", "sqlite://:memory:"],
            "which is not a loopback address",
        ),
        (
            [
                "--listen",
                "127.0.0.1:80",
                "--database-url",
                "postgres:///d",
            ],
            "PostgreSQL needs a key source",
        ),
    ] {
        let error = enter(&settings(&flags)).unwrap_err().to_string();
        assert!(
            error.contains(expected) && error.contains("TOLLKEY_JWT_HS256_SECRET"),
            "{error}"
        );
    }
    for listen in [
        "127.0.0.1:0",
        "127.9.9.9:0",
        "[::1]:0",
        "[::ffff:127.0.0.1]:0",
    ] {
        enter(&settings(&[
            "--listen",
            listen,
            "--database-url",
            "sqlite://:memory:",
        ]))
        .unwrap();
    }
}

#[tokio::test]
async fn secret_is_created_only_next_to_a_usable_database() {
    let directory = tempfile::tempdir().unwrap();
    let open = async |settings: &Settings| {
        crate::assembly::open(settings, Arc::new(SystemClock), Random::system())
            .await
            .map_err(|error| format!("{error:#}"))
    };
    let settings = on_file(directory.path());
    let (database, secret) = (
        directory.path().join("keys.db"),
        directory.path().join("keys.db.jwt-secret"),
    );
    fs::write(&database, "not a database").unwrap();
    let error = open(&settings).await.unwrap_err();
    assert!(error.contains("is not a SQLite database"), "{error}");
    assert!(!secret.exists());
    // The error is about the database, not about the secret.
    let missing = on_file(&directory.path().join("missing"));
    let error = open(&missing).await.unwrap_err();
    assert!(
        error.contains("cannot open the SQLite database") && error.contains("create the directory"),
        "{error}"
    );
    fs::remove_file(&database).unwrap();
    open(&settings).await.unwrap();
    assert!(secret.exists());
}

#[test]
fn error_shows_the_absolute_path_of_the_secret() {
    let error = enter(&settings(&[
        "--database-url",
        "sqlite://no/such/directory/keys.db",
    ]))
    .unwrap_err()
    .to_string();
    let path = std::env::current_dir()
        .unwrap()
        .join("no/such/directory/keys.db.jwt-secret");
    assert!(error.contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn unknown_variable_prevents_development_mode() {
    let directory = tempfile::tempdir().unwrap();
    let unknown = UnknownVariable {
        name: "TOLLKEY_JWT_HS256_SECRT".to_owned(),
        nearest: "TOLLKEY_JWT_HS256_SECRET",
    };
    let mut settings = on_file(directory.path());
    settings.unknown_variables = vec![unknown];
    let error = enter(&settings).unwrap_err().to_string();
    assert!(
        error.contains("TOLLKEY_JWT_HS256_SECRT is set; did you mean TOLLKEY_JWT_HS256_SECRET?"),
        "{error}"
    );
    assert!(matches!(
        signing_secret(&settings),
        Err(DevModeError::UnknownVariable { .. })
    ));
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        0,
        "nothing is created"
    );
}

#[test]
fn key_source_turns_development_mode_off() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    fs::write(&path, "s".repeat(32)).unwrap();
    let with_source = settings(&[
        "--listen",
        "0.0.0.0:80",
        "--jwt-hs256-secret-file",
        path.to_str().unwrap(),
    ]);
    assert!(
        DevMode::enter(&with_source, &Random::system())
            .unwrap()
            .is_none()
    );
    assert_eq!(
        signing_secret(&with_source).unwrap().0.expose(),
        "s".repeat(32)
    );
    let elsewhere = settings(&[
        "--jwt-public-key-file",
        "k.pem",
        "--jwt-issuer",
        "i",
        "--jwt-audience",
        "a",
    ]);
    let error = signing_secret(&elsewhere).unwrap_err();
    assert!(matches!(error, DevModeError::IssuedElsewhere));
}

#[test]
fn secret_is_created_once_next_to_the_database() {
    let directory = tempfile::tempdir().unwrap();
    let settings = on_file(directory.path());
    let first = enter(&settings).unwrap();
    let path = directory.path().join("keys.db.jwt-secret");
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        format!("{}\n", first.secret().expose())
    );
    assert_eq!(first.secret().expose().len(), 64);
    assert_eq!(enter(&settings).unwrap().secret(), first.secret());
    let missing = signing_secret(&settings).unwrap_err().to_string();
    assert!(
        missing.contains(&directory.path().join("keys.db").display().to_string()),
        "{missing}"
    );
    fs::write(directory.path().join("keys.db"), "").unwrap();
    let (secret, origin) = signing_secret(&settings).unwrap();
    assert_eq!(&secret, first.secret());
    assert!(origin.contains(path.to_str().unwrap()), "{origin}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
    }
}

#[cfg(unix)]
#[test]
fn secret_that_others_can_read_is_rejected() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let settings = on_file(directory.path());
    enter(&settings).unwrap();
    let path = directory.path().join("keys.db.jwt-secret");
    for mode in [0o640, 0o604, 0o644, 0o660] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = enter(&settings).unwrap_err();
        assert!(matches!(error, DevModeError::Exposed { .. }), "{error}");
        assert!(
            error.to_string().contains(&format!("(mode {mode:o})")),
            "{error}"
        );
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
    enter(&settings).unwrap();
}

#[test]
fn file_without_a_secret_is_rejected_and_not_changed() {
    let directory = tempfile::tempdir().unwrap();
    let settings = on_file(directory.path());
    enter(&settings).unwrap();
    let path = directory.path().join("keys.db.jwt-secret");
    fs::write(&path, "short\n").unwrap();
    assert!(matches!(
        enter(&settings).unwrap_err(),
        DevModeError::NoSecret(_)
    ));
    assert_eq!(fs::read_to_string(&path).unwrap(), "short\n");
}

#[test]
fn concurrent_starts_share_one_secret() {
    let directory = tempfile::tempdir().unwrap();
    let settings = on_file(directory.path());
    let secrets: Vec<Secret> = thread::scope(|scope| {
        let starts: Vec<_> = (0..8)
            .map(|_| scope.spawn(|| enter(&settings).unwrap().secret().clone()))
            .collect();
        starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect()
    });
    assert!(secrets.iter().all(|secret| *secret == secrets[0]));
}

#[test]
fn error_names_a_missing_directory() {
    let error = enter(&settings(&[
        "--database-url",
        "sqlite://no/such/dir/keys.db",
    ]))
    .unwrap_err()
    .to_string();
    assert!(error.contains("no/such/dir/keys.db.jwt-secret"), "{error}");
}

#[test]
fn secret_in_memory_is_new_at_every_start() {
    let memory = settings(&["--database-url", "sqlite://:memory:"]);
    assert_ne!(
        enter(&memory).unwrap().secret(),
        enter(&memory).unwrap().secret()
    );
    let error = signing_secret(&memory).unwrap_err();
    assert!(matches!(error, DevModeError::SecretInMemory));
}

#[tokio::test]
async fn message_has_a_valid_token_link_and_command() {
    for flags in [
        vec!["--database-url", "sqlite://:memory:"],
        vec![
            "--database-url",
            "sqlite://:memory:",
            "--jwt-issuer",
            "me",
            "--jwt-audience",
            "us",
        ],
        vec![
            "--database-url",
            "sqlite://:memory:",
            "--jwt-account-claim",
            "sub",
        ],
    ] {
        let settings = settings(&flags);
        let mode = enter(&settings).unwrap();
        let message = mode
            .message("http://127.0.0.1:4711", now(), &Random::system())
            .unwrap();
        assert!(
            message.contains("Swagger UI: http://127.0.0.1:4711/docs/\n"),
            "{message}"
        );
        assert!(
            message.contains("curl -sS -X POST 'http://127.0.0.1:4711/api/v1/applications' -H 'Authorization: Bearer ")
        );

        let token = message
            .lines()
            .find(|line| line.starts_with("eyJ"))
            .unwrap();
        assert_eq!(message.matches(token).count(), 2);
        let verifier = TokenVerifier::open(&settings.tokens, Some(mode.secret())).unwrap();
        let claims = verifier.verify(token, now()).await.unwrap();
        assert_eq!(claims.account.unwrap().as_str(), EXAMPLE_ACCOUNT);

        let link = message
            .lines()
            .find_map(|line| line.strip_prefix("Dashboard:  "))
            .unwrap();
        let code = link
            .strip_prefix("http://127.0.0.1:4711/dashboard/sign-in/link?code=")
            .unwrap();
        assert!(
            mode.links(now()).unwrap().follow(code, now()).is_some(),
            "{link}"
        );
        assert!(claims.roles.is_empty());

        let body = message
            .split(" -d '")
            .nth(1)
            .unwrap()
            .trim_end()
            .trim_end_matches('\'');
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(body["name"].as_str().unwrap().starts_with("Example "));
        assert_eq!(body.as_object().unwrap().len(), 1);
        assert!(!message.contains(mode.secret().expose()));
    }
}

#[test]
fn debug_output_hides_the_secret() {
    let mode = enter(&settings(&["--database-url", "sqlite://:memory:"])).unwrap();
    assert!(!format!("{mode:?}").contains(mode.secret().expose()));
}
