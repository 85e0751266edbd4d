//! Tests of the conditions of development mode, its secret and its message.

use std::{fs, sync::Arc};

use clap::Command;
use tollkey_verifier::SystemClock;

use super::*;
use crate::{
    auth::jwt::TokenVerifier,
    config::{Options, UnknownVariable},
};

const IN_MEMORY: &str = "--database-url=sqlite://:memory:";

fn settings(flags: &[&str]) -> Settings {
    let command = Options::add_to(Command::new("tollkey").no_binary_name(true));
    let options = Options::from_matches(&command.get_matches_from(flags));
    Settings::resolve(&options, &|_| None, Path::new("no-such-file.toml")).unwrap()
}

fn on_file(directory: &Path) -> Settings {
    let url = format!("sqlite://{}/keys.db", directory.display());
    settings(&["--database-url", &url])
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
    let postgres = "--database-url=postgres:///d";
    let rule = "which is not a loopback address";
    for (database, listen, expected) in [
        (IN_MEMORY, "0.0.0.0:80", &*format!("0.0.0.0:80, {rule}")),
        (IN_MEMORY, "[::]:80", rule),
        (postgres, "127.0.0.1:80", "PostgreSQL needs a key source"),
    ] {
        let settings = settings(&[database, "--listen", listen]);
        let error = enter(&settings).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(error.contains("TOLLKEY_JWT_HS256_SECRET"), "{error}");
    }
    for ip in ["127.0.0.1", "127.9.9.9", "[::1]", "[::ffff:127.0.0.1]"] {
        let listen = format!("--listen={ip}:0");
        enter(&settings(&[IN_MEMORY, &listen])).unwrap();
    }
}

#[test]
fn development_mode_rejects_unix_sockets_and_checks_each_address() {
    for (listen, part) in [
        (
            "unix:/run/tollkey.sock",
            "Unix socket, /run/tollkey.sock, needs",
        ),
        (
            "127.0.0.1:0,unix:/run/tollkey.sock",
            "Unix socket, /run/tollkey.sock, needs",
        ),
        (
            "127.0.0.1:0,0.0.0.0:80",
            "0.0.0.0:80, which is not a loopback address",
        ),
    ] {
        let settings = settings(&[IN_MEMORY, "--listen", listen]);
        let error = enter(&settings).unwrap_err().to_string();
        assert!(error.contains(part), "{listen}: {error}");
        assert!(error.contains("TOLLKEY_JWT_HS256_SECRET"), "{error}");
    }
    enter(&settings(&[IN_MEMORY, "--listen=127.0.0.1:0,[::1]:0"])).unwrap();
}

#[test]
fn development_mode_requires_loopback_for_grpc() {
    let mut settings = settings(&[IN_MEMORY, "--listen=127.0.0.1:0"]);
    settings.server.grpc_listen = Some("0.0.0.0:9000".parse().unwrap());
    let error = enter(&settings).unwrap_err().to_string();
    for part in [
        "0.0.0.0:9000, which is not a loopback address",
        "or set TOLLKEY_GRPC_LISTEN to a loopback address",
    ] {
        assert!(error.contains(part), "{error}");
    }
    settings.server.grpc_listen = Some("[::1]:9000".parse().unwrap());
    enter(&settings).unwrap();
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
    let database = directory.path().join("keys.db");
    let secret = directory.path().join("keys.db.jwt-secret");
    fs::write(&database, "not a database").unwrap();
    let error = open(&settings).await.unwrap_err();
    assert!(error.contains("is not a SQLite database"), "{error}");
    assert!(!secret.exists());
    // The error is about the database, not about the secret.
    let missing = on_file(&directory.path().join("missing"));
    let error = open(&missing).await.unwrap_err();
    assert!(error.contains("cannot open the SQLite database"), "{error}");
    assert!(error.contains("create the directory"), "{error}");
    fs::remove_file(&database).unwrap();
    open(&settings).await.unwrap();
    assert!(secret.exists());
}

#[test]
fn error_shows_the_absolute_path_of_the_secret() {
    let directory = Path::new("no/such/directory");
    let error = enter(&on_file(directory)).unwrap_err().to_string();
    let directory = std::env::current_dir().unwrap().join(directory);
    let path = directory.join("keys.db.jwt-secret");
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
    let rule = "TOLLKEY_JWT_HS256_SECRT is set; did you mean TOLLKEY_JWT_HS256_SECRET?";
    assert!(error.contains(rule), "{error}");
    let error = signing_secret(&settings).unwrap_err();
    assert!(matches!(error, DevModeError::UnknownVariable { .. }));
    let files = fs::read_dir(directory.path()).unwrap();
    assert_eq!(files.count(), 0, "nothing is created");
}

#[test]
fn key_source_turns_development_mode_off() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    fs::write(&path, "s".repeat(32)).unwrap();
    let file = format!("--jwt-hs256-secret-file={}", path.display());
    let with_source = settings(&["--listen=0.0.0.0:80", &file]);
    let development = DevMode::enter(&with_source, &Random::system()).unwrap();
    assert!(development.is_none());
    let (secret, _) = signing_secret(&with_source).unwrap();
    assert_eq!(secret.expose(), "s".repeat(32));
    let public_key = "--jwt-public-key-file=k.pem";
    let elsewhere = settings(&[public_key, "--jwt-issuer=i", "--jwt-audience=a"]);
    let error = signing_secret(&elsewhere).unwrap_err();
    assert!(matches!(error, DevModeError::IssuedElsewhere));
}

#[test]
fn secret_is_created_once_next_to_the_database() {
    let directory = tempfile::tempdir().unwrap();
    let settings = on_file(directory.path());
    let first = enter(&settings).unwrap();
    let path = directory.path().join("keys.db.jwt-secret");
    let stored = fs::read_to_string(&path).unwrap();
    assert_eq!(stored, format!("{}\n", first.secret().expose()));
    assert_eq!(first.secret().expose().len(), 64);
    assert_eq!(enter(&settings).unwrap().secret(), first.secret());
    let missing = signing_secret(&settings).unwrap_err().to_string();
    let database = directory.path().join("keys.db");
    assert!(missing.contains(database.to_str().unwrap()), "{missing}");
    fs::write(database, "").unwrap();
    let (secret, origin) = signing_secret(&settings).unwrap();
    assert_eq!(&secret, first.secret());
    assert!(origin.contains(path.to_str().unwrap()), "{origin}");
    let mode = fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn secret_that_others_can_read_is_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let settings = on_file(directory.path());
    enter(&settings).unwrap();
    let path = directory.path().join("keys.db.jwt-secret");
    for mode in [0o640, 0o604, 0o644, 0o660] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = enter(&settings).unwrap_err();
        assert!(matches!(error, DevModeError::Exposed { .. }), "{error}");
        let shown = format!("(mode {mode:o})");
        assert!(error.to_string().contains(&shown), "{error}");
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
    let error = enter(&settings).unwrap_err();
    assert!(matches!(error, DevModeError::NoSecret(_)));
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
        let secrets = starts.into_iter().map(|start| start.join().unwrap());
        secrets.collect()
    });
    assert!(secrets.iter().all(|secret| *secret == secrets[0]));
}

#[test]
fn secret_in_memory_is_new_at_every_start() {
    let memory = settings(&[IN_MEMORY]);
    let [first, second] = [(); 2].map(|()| enter(&memory).unwrap());
    assert_ne!(first.secret(), second.secret());
    let error = signing_secret(&memory).unwrap_err();
    assert!(matches!(error, DevModeError::SecretInMemory));
}

#[tokio::test]
async fn message_has_a_valid_token_link_and_command() {
    for flags in [
        &[IN_MEMORY][..],
        &[IN_MEMORY, "--jwt-issuer=me", "--jwt-audience=us"],
        &[IN_MEMORY, "--jwt-account-claim=sub"],
    ] {
        let settings = settings(flags);
        let mode = enter(&settings).unwrap();
        let base_url = "http://127.0.0.1:4711";
        let message = mode.message(base_url, now(), &Random::system()).unwrap();
        for part in [
            "Swagger UI: http://127.0.0.1:4711/docs/\n",
            "curl -sS -X POST 'http://127.0.0.1:4711/api/v1/applications' -H 'Authorization: Bearer ",
        ] {
            assert!(message.contains(part), "{message}");
        }

        let mut lines = message.lines();
        let token = lines.find(|line| line.starts_with("eyJ")).unwrap();
        assert_eq!(message.matches(token).count(), 2);
        let verifier = TokenVerifier::open(&settings.tokens, Some(mode.secret())).unwrap();
        let claims = verifier.verify(token, now()).await.unwrap();
        assert_eq!(claims.account.unwrap().as_str(), EXAMPLE_ACCOUNT);

        let link = message
            .lines()
            .find_map(|line| line.strip_prefix("Dashboard:  "))
            .unwrap();
        let prefix = "http://127.0.0.1:4711/dashboard/sign-in/link?code=";
        let code = link.strip_prefix(prefix).unwrap();
        let followed = mode.links(now()).unwrap().follow(code, now());
        assert!(followed.is_some(), "{link}");
        assert!(claims.roles.is_empty());

        let (_, body) = message.split_once(" -d '").unwrap();
        let body = body.trim_end().trim_end_matches('\'');
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert!(body["name"].as_str().unwrap().starts_with("Example "));
        assert_eq!(body.as_object().unwrap().len(), 1);
        assert!(!message.contains(mode.secret().expose()));
    }
}

#[test]
fn debug_output_hides_the_secret() {
    let mode = enter(&settings(&[IN_MEMORY])).unwrap();
    assert!(!format!("{mode:?}").contains(mode.secret().expose()));
}
