//! Tests of the sources and rules of settings.

use std::{collections::HashSet, fs, io::Write as _, os::fd::AsRawFd as _};

use clap::{Args as _, Parser};
use tollkey_core::{Family, IpList, RouteBase, Scope, credential::CredentialHeaders};

use super::*;
use crate::auth::jwt::TokenVerifier;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    options: Options,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(clap::Subcommand)]
enum Command {
    Serve,
}

fn resolve(
    flags: &[&str],
    variables: &[(&str, &str)],
    file: Option<&str>,
) -> Result<Settings, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(DEFAULT_FILE);
    if let Some(text) = file {
        fs::write(&path, text).unwrap();
    }
    let cli =
        Cli::try_parse_from([&["tollkey"], flags].concat()).map_err(|error| error.to_string())?;
    let env = |name: &str| {
        variables
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| OsString::from(value))
    };
    Settings::resolve(&cli.options, &env, &path).map_err(|error| error.to_string())
}

fn environment(variables: &[(&str, &str)]) -> Result<Settings, String> {
    resolve(&[], variables, None)
}

/// A secret that no output may contain.
fn canary() -> String {
    "canary-".repeat(6)
}

fn secret_file(text: &str) -> (tempfile::TempDir, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("secret");
    fs::write(&path, text).unwrap();
    (directory, path.to_str().unwrap().to_owned())
}

#[test]
fn settings_have_the_documented_defaults() {
    let settings = environment(&[]).unwrap();
    assert_eq!(settings.server.listen.to_string(), "127.0.0.1:8080");
    assert!(settings.server.workers() >= 1);
    assert_eq!(settings.server.metrics_listen, None);
    assert_eq!(
        settings.server.trusted_proxies,
        Some(IpList::parse(["127.0.0.0/8", "::1/128"]).unwrap())
    );
    assert_eq!(settings.server.merchant_header, "x-merchant-id");
    assert_eq!(settings.server.route_base, RouteBase::default());
    assert_eq!(
        settings.server.credential_headers,
        CredentialHeaders::default()
    );
    assert_eq!(
        (settings.log.filter.as_str(), settings.log.format),
        ("info", LogFormat::Pretty)
    );
    assert_eq!(settings.database.url.expose(), "sqlite://tollkey.db");
    assert_eq!(
        settings.database.kind,
        DatabaseKind::SqliteFile("tollkey.db".into())
    );
    assert_eq!(settings.database.wait, Duration::from_secs(30));
    assert!(!settings.database.migrate);
    assert!(matches!(settings.tokens.source, TokenSource::Development));
    assert_eq!(settings.tokens.account_claim, "account_id");
    assert_eq!(settings.tokens.roles_claim.as_deref(), Some("roles"));
    assert_eq!(settings.key_limits.application_key_limit, 20);
    assert_eq!(settings.catalogue, Catalogue::default());
    assert_eq!(
        (settings.cache.bytes, settings.cache.keys),
        (256 * 1024 * 1024, 1_000_000)
    );
    assert_eq!(settings.warnings().collect::<Vec<_>>(), []);
}

#[test]
fn flag_overrides_environment_and_environment_overrides_file() {
    let file = Some("merchant_header = \"x-file\"");
    let variables = [("TOLLKEY_MERCHANT_HEADER", "x-env")];
    let flags = ["--merchant-header", "x-flag"];
    let header = |flags: &[&str], variables: &[(&str, &str)], file| {
        resolve(flags, variables, file)
            .unwrap()
            .server
            .merchant_header
    };
    assert_eq!(header(&[], &[], None), "x-merchant-id");
    assert_eq!(header(&[], &[], file), "x-file");
    assert_eq!(header(&[], &variables, file), "x-env");
    assert_eq!(header(&flags, &variables, file), "x-flag");
}

#[test]
fn flags_are_accepted_before_and_after_the_subcommand() {
    for flags in [["--workers", "3", "serve"], ["serve", "--workers", "3"]] {
        assert_eq!(
            resolve(&flags, &[], None).unwrap().server.workers(),
            3,
            "{flags:?}"
        );
    }
    assert!(
        Cli::try_parse_from(["tollkey", "serve"])
            .unwrap()
            .command
            .is_some()
    );
}

#[test]
fn switch_without_a_value_means_true() {
    assert!(resolve(&["--migrate"], &[], None).unwrap().database.migrate);
    assert!(
        resolve(&["--migrate", "serve"], &[], None)
            .unwrap()
            .database
            .migrate
    );
    let postgres = [
        ("TOLLKEY_MIGRATE", "true"),
        ("DATABASE_URL", "postgres://localhost/keys"),
    ];
    assert!(
        !resolve(&["--migrate=false"], &postgres, None)
            .unwrap()
            .database
            .migrate
    );
}

#[test]
fn setting_without_effect_on_the_database_is_rejected() {
    let (file, memory, server) = ("sqlite://keys.db", "sqlite://:memory:", "postgres:///keys");
    for (setting, good, other, rejected_by) in [
        (
            "TOLLKEY_DATABASE_WAIT_SECONDS",
            "0",
            "30",
            vec![file, memory],
        ),
        ("TOLLKEY_DATABASE_POOL", "1", "8", vec![memory]),
        ("TOLLKEY_MIGRATE", "true", "false", vec![file, memory]),
    ] {
        for url in [file, memory, server] {
            let with = |value: &str| environment(&[("DATABASE_URL", url), (setting, value)]);
            assert!(with(good).is_ok(), "{setting} {url}");
            let result = with(other);
            assert_eq!(
                result.is_err(),
                rejected_by.contains(&url),
                "{setting} {url}"
            );
            if let Err(error) = result {
                let rule = format!("{setting} (environment): must be {good} or left out with ");
                assert!(error.starts_with(&rule), "{error}");
            }
        }
    }
}

#[test]
fn migration_cannot_be_turned_off_on_sqlite() {
    for (flags, file) in [
        (&["--migrate=false"][..], None),
        (&[], Some("migrate = false")),
    ] {
        let error = resolve(flags, &[], file).unwrap_err();
        assert!(
            error.contains("must be true or left out with SQLite"),
            "{error}"
        );
    }
    assert!(
        resolve(
            &[],
            &[],
            Some("migrate = false\ndatabase_url = 'postgres://localhost/keys'")
        )
        .is_ok()
    );
}

#[test]
fn empty_value_is_rejected_even_if_it_is_overridden() {
    for setting in SETTINGS.iter() {
        for empty in ["", "  "] {
            let error = environment(&[(&setting.env, empty)]).unwrap_err();
            let expected = format!(
                "{} (environment): must not be empty; leave it out instead",
                setting.env
            );
            assert_eq!(error, expected);
        }
    }
    let error = resolve(
        &["--listen", "127.0.0.1:1"],
        &[("TOLLKEY_LISTEN", "")],
        None,
    )
    .unwrap_err();
    assert!(error.starts_with("TOLLKEY_LISTEN (environment)"), "{error}");
    let error = resolve(&["--log", ""], &[], None).unwrap_err();
    assert!(error.starts_with("TOLLKEY_LOG (flag --log)"), "{error}");
    let error = resolve(&[], &[], Some("log = ''")).unwrap_err();
    assert!(
        error.starts_with("TOLLKEY_LOG (") && error.contains("tollkey.toml"),
        "{error}"
    );
    assert!(
        environment(&[("TOLLKEY_CONFIG", "")])
            .unwrap_err()
            .starts_with("TOLLKEY_CONFIG (environment)")
    );
}

#[test]
fn flag_variable_and_field_have_the_same_name() {
    let variables: HashSet<_> = SETTINGS.iter().map(|setting| &setting.env).collect();
    assert_eq!(variables.len(), SETTINGS.len());
    for setting in setting::all() {
        match &setting.flag {
            Some(flag) => assert_eq!(flag.replace('-', "_"), setting.field()),
            None => assert!(
                setting.env.ends_with("_SECRET"),
                "has no flag, but is not a secret: {}",
                setting.env
            ),
        }
        assert!(
            setting.env == "DATABASE_URL"
                || setting.env == "DATABASE_URL_FILE"
                || setting.env.starts_with("TOLLKEY_")
        );
        assert!(!setting.help.ends_with('.') && setting.help.len() > 10);
    }
}

#[test]
fn file_can_set_typed_values() {
    let settings = resolve(
        &[],
        &[],
        Some(&format!(
            r#"
            listen = "[::1]:0"
            database_url = "postgres://tollkey@localhost/tollkey"
            database_pool = 4
            migrate = true
            workers = 2
            metrics_listen = "127.0.0.1:9090"
            trusted_proxies = ["10.0.0.0/8", "192.0.2.0/24"]
            merchant_header = "X-Shop"
            credential_headers = ["X-API-Key", "x-commerce-api-key"]
            route_base = "/"
            log = "warn,tollkey_server=debug"
            log_format = "json"
            jwt_hs256_secret = "{}"
            jwt_issuer = "https://issuer.example"
            jwt_audience = "tollkey"
            jwt_account_claim = "org"
            jwt_roles_claim = "https://example.com/roles"
            application_key_limit = 5
            scopes = "refunds:read,refunds:write"
            commerce_scopes = ["refunds:read"]
            cache_bytes = 8388608
            cached_keys = 10
            "#,
            canary()
        )),
    )
    .unwrap();
    assert_eq!(settings.server.listen.to_string(), "[::1]:0");
    assert_eq!(settings.database.kind, DatabaseKind::Postgres);
    assert_eq!(
        (
            settings.database.pool,
            settings.database.migrate,
            settings.server.workers()
        ),
        (4, true, 2)
    );
    assert_eq!(settings.server.trusted_proxies.unwrap().networks().len(), 2);
    assert_eq!(
        (
            settings.server.merchant_header.as_str(),
            &settings.server.route_base
        ),
        ("x-shop", &RouteBase::none())
    );
    assert!(
        settings
            .server
            .credential_headers
            .names()
            .eq(["x-api-key", "x-commerce-api-key"])
    );
    assert_eq!(settings.log.format, LogFormat::Json);
    assert!(
        matches!(settings.tokens.source, TokenSource::Hs256(secret) if secret.expose() == canary())
    );
    assert_eq!(
        settings.tokens.issuer.as_deref(),
        Some("https://issuer.example")
    );
    assert_eq!(
        settings.tokens.roles_claim.as_deref(),
        Some("https://example.com/roles")
    );
    assert_eq!(settings.key_limits.application_key_limit, 5);
    assert_eq!(
        (settings.cache.bytes, settings.cache.keys),
        (8 * 1024 * 1024, 10)
    );
    let commerce = settings
        .catalogue
        .expand(Family::Commerce, &[Scope::COMMERCE]);
    assert!(commerce.contains_all(settings.catalogue.needed(["refunds:read"]).unwrap()));
    assert!(!commerce.contains_all(settings.catalogue.needed(["refunds:write"]).unwrap()));
}

#[test]
fn file_with_unknown_field_or_wrong_type_is_rejected() {
    for (file, expected) in [
        (
            "lisen = \"127.0.0.1:1\"",
            "unknown field \"lisen\"; did you mean \"listen\"?",
        ),
        ("[listen]\nport = 1", "TOLLKEY_LISTEN"),
        ("config = \"x\"", "unknown field \"config\""),
        ("workers = \"2\"", "must be an integer"),
        ("listen = 8080", "must be a string"),
        ("migrate = \"yes\"", "must be true or false"),
        ("scopes = [1]", "must be an array of strings without commas"),
        (
            "scopes = [\"a,b\"]",
            "must be an array of strings without commas",
        ),
        ("scopes = 1", "must be an array of strings"),
        ("workers = 1\nworkers = 2", "line 2: duplicate key"),
    ] {
        let error = resolve(&[], &[], Some(file)).unwrap_err();
        assert!(
            error.contains(expected) && error.contains("tollkey.toml"),
            "{file}: {error}"
        );
    }
}

#[test]
fn error_of_a_malformed_file_does_not_quote_it() {
    for line in [
        format!("jwt_hs256_secret = {}", canary()),
        format!("jwt_hs256_secret = \"{}", canary()),
        format!("jwt_hs256_secret = \"{}\" \"{}\"", canary(), canary()),
        format!("jwt_hs256_secret = [\"{}\"]", canary()),
        format!("jwt_hs256_secret.x = \"{}\"", canary()),
    ] {
        let error = resolve(&[], &[], Some(&format!("workers = 1\n{line}"))).unwrap_err();
        assert!(!error.contains("canary"), "{error}");
        assert!(
            error.contains("line 2") || error.contains("must be a string"),
            "{error}"
        );
    }
}

#[test]
fn named_configuration_file_must_exist() {
    let (_directory, path) = secret_file("workers = 7");
    assert_eq!(
        resolve(&["--config", &path], &[], Some("workers = 1"))
            .unwrap()
            .server
            .workers(),
        7
    );
    assert_eq!(
        environment(&[("TOLLKEY_CONFIG", &path)])
            .unwrap()
            .server
            .workers(),
        7
    );
    let error = environment(&[("TOLLKEY_CONFIG", "missing.toml")]).unwrap_err();
    assert!(
        error.starts_with("TOLLKEY_CONFIG (environment): cannot read the file that it names: "),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn unreadable_default_file_is_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let (link, folder) = (
        directory.path().join("link.toml"),
        directory.path().join("folder.toml"),
    );
    std::os::unix::fs::symlink("nowhere", &link).unwrap();
    fs::create_dir(&folder).unwrap();
    let latin1 = directory.path().join("latin1.toml");
    fs::write(&latin1, b"log = \"caf\xe9\"").unwrap();
    for path in [link, folder, latin1] {
        let error = Settings::resolve(&Options::default(), &|_| None, &path)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("configuration file {}: ", path.display())),
            "{error}"
        );
    }
    let missing = directory.path().join("missing.toml");
    assert!(Settings::resolve(&Options::default(), &|_| None, &missing).is_ok());
}

#[test]
fn invalid_value_is_rejected_with_its_rule() {
    let long = "1".repeat(60);
    for (variable, value, rule) in [
        ("TOLLKEY_LISTEN", "8080", "must be an address and a port"),
        (
            "TOLLKEY_LISTEN",
            "example.com:80",
            "must be an address and a port",
        ),
        (
            "TOLLKEY_METRICS_LISTEN",
            "off",
            "must be an address and a port",
        ),
        (
            "TOLLKEY_WORKERS",
            "0",
            "must be a whole number from 1 to 1024",
        ),
        (
            "TOLLKEY_WORKERS",
            "many",
            "must be a whole number from 1 to 1024",
        ),
        (
            "TOLLKEY_WORKERS",
            &long,
            "must be a whole number from 1 to 1024",
        ),
        ("TOLLKEY_DATABASE_POOL", "-1", "must be a whole number"),
        (
            "TOLLKEY_APPLICATION_KEY_LIMIT",
            "0",
            "must be a whole number",
        ),
        (
            "TOLLKEY_CACHE_BYTES",
            "4194303",
            "must be a whole number from 4194304 to",
        ),
        ("TOLLKEY_CACHE_BYTES", "256MiB", "must be a whole number"),
        ("TOLLKEY_CACHED_KEYS", "0", "must be a whole number"),
        ("TOLLKEY_REMEMBERED_KEYS", "0", "must be a whole number"),
        ("TOLLKEY_MIGRATE", "1", "must be true or false"),
        (
            "TOLLKEY_TRUSTED_PROXIES",
            "10.0.0.1",
            "entry 1 must be a CIDR with host bits of zero",
        ),
        (
            "TOLLKEY_TRUSTED_PROXIES",
            "127.0.0.0/8,10.0.0.1/8",
            "entry 2 must be a CIDR with host bits of zero",
        ),
        (
            "TOLLKEY_TRUSTED_PROXIES",
            "10.0.0.0/8,",
            "must not have an empty entry",
        ),
        (
            "TOLLKEY_MERCHANT_HEADER",
            "x merchant",
            "must be the name of a header",
        ),
        (
            "TOLLKEY_MERCHANT_HEADER",
            "Authorization",
            "must not be a header that already has a meaning",
        ),
        (
            "TOLLKEY_MERCHANT_HEADER",
            "X-Auth-Key-Id",
            "must not be a header that already has a meaning",
        ),
        (
            "TOLLKEY_CREDENTIAL_HEADERS",
            "cookie",
            "must list one or more of authorization, x-api-key, x-commerce-api-key",
        ),
        (
            "TOLLKEY_CREDENTIAL_HEADERS",
            "x-api-key,",
            "must not have an empty entry",
        ),
        (
            "TOLLKEY_CREDENTIAL_HEADERS",
            "x-api-key,x-api-keys",
            "must list one or more of authorization",
        ),
        (
            "TOLLKEY_ROUTE_BASE",
            "api",
            "must begin with a slash, such as /api",
        ),
        (
            "TOLLKEY_ROUTE_BASE",
            "/api//",
            "must be a path such as /api",
        ),
        (
            "TOLLKEY_ROUTE_BASE",
            "/a/../b",
            "must be a path such as /api",
        ),
        ("TOLLKEY_LOG", "info,=", "directive 2: unknown level"),
        (
            "TOLLKEY_LOG",
            "infoo",
            "unknown level; the levels are off, error, warn, info, debug, trace",
        ),
        ("TOLLKEY_LOG", "5", "unknown level"),
        (
            "TOLLKEY_LOG",
            "info,tollkey_server",
            "directive 2: unknown level",
        ),
        ("TOLLKEY_LOG", "tollkey_server=verbose", "unknown level"),
        ("TOLLKEY_LOG", "tollkey_server=", "unknown level"),
        (
            "TOLLKEY_LOG",
            "info,[span]=loud",
            "directive 2: unknown level",
        ),
        (
            "TOLLKEY_LOG",
            "info,[span{}=debug",
            "directive 2: must be LEVEL, TARGET=LEVEL or",
        ),
        ("TOLLKEY_LOG", "info,", "must not have an empty entry"),
        ("TOLLKEY_LOG_FORMAT", "xml", "must be pretty or json"),
        (
            "TOLLKEY_DATABASE_WAIT_SECONDS",
            "-1",
            "must be a whole number from 0 to 3600",
        ),
        (
            "TOLLKEY_DATABASE_WAIT_SECONDS",
            "3601",
            "must be a whole number from 0 to 3600",
        ),
        (
            "DATABASE_URL",
            "postgres://me:a@b@db/keys",
            "write an @ in the user name or the password as %40",
        ),
        ("DATABASE_URL", "host=db user=me", "must be a URL"),
        (
            "DATABASE_URL",
            "mysql://localhost",
            "must begin with sqlite:// or postgres://",
        ),
        (
            "DATABASE_URL",
            "tollkey.db",
            "must begin with sqlite:// or postgres://",
        ),
        ("DATABASE_URL", "sqlite://", "must name a file"),
        ("DATABASE_URL", "sqlite://a.db?mode=ro", "must name a file"),
        (
            "TOLLKEY_SCOPES",
            "Refunds",
            "entry 1 must have 1 to 64 characters",
        ),
        (
            "TOLLKEY_SCOPES",
            "refunds:read,links:read",
            "entry 2 is a built-in scope or repeated",
        ),
        (
            "TOLLKEY_SCOPES",
            "refunds:read,refunds:read",
            "entry 2 is a built-in scope or repeated",
        ),
        (
            "TOLLKEY_COMMERCE_SCOPES",
            "refunds:read",
            "entry 1 must also be in TOLLKEY_SCOPES",
        ),
        (
            "TOLLKEY_JWT_JWKS_URL",
            "http://issuer.example/jwks",
            "must be https",
        ),
        (
            "TOLLKEY_JWT_JWKS_URL",
            "https://u:p@issuer.example/jwks",
            "must not have a user name or password",
        ),
        ("TOLLKEY_JWT_JWKS_URL", "issuer.example", "must be a URL"),
    ] {
        let mut variables = vec![(variable, value)];
        if variable == "TOLLKEY_JWT_JWKS_URL" {
            variables.extend([("TOLLKEY_JWT_ISSUER", "i"), ("TOLLKEY_JWT_AUDIENCE", "a")]);
        }
        let error = environment(&variables).unwrap_err();
        assert!(
            error.starts_with(&format!("{variable} (environment): ")) && error.contains(rule),
            "{value}: {error}"
        );
    }
}

#[test]
fn former_name_of_a_setting_is_accepted_and_reported() {
    let renamed = Warning::Renamed {
        former: "TOLLKEY_REMEMBERED_KEYS",
        setting: "TOLLKEY_CACHED_KEYS",
    };
    for settings in [
        resolve(&["--remembered-keys", "7"], &[], None),
        environment(&[("TOLLKEY_REMEMBERED_KEYS", "7")]),
        resolve(&[], &[], Some("remembered_keys = 7")),
    ] {
        let settings = settings.unwrap();
        assert_eq!(settings.cache.keys, 7);
        assert_eq!(
            settings.warnings().collect::<Vec<_>>(),
            [renamed.clone(); 1]
        );
    }
    let both = environment(&[
        ("TOLLKEY_REMEMBERED_KEYS", "7"),
        ("TOLLKEY_CACHED_KEYS", "7"),
    ])
    .unwrap_err();
    assert!(
        both.starts_with("TOLLKEY_CACHED_KEYS (environment) and TOLLKEY_REMEMBERED_KEYS"),
        "{both}"
    );
    let help = Options::augment_args(clap::Command::new("tollkey"))
        .render_long_help()
        .to_string();
    assert!(
        help.contains("--cached-keys") && !help.contains("--remembered-keys"),
        "{help}"
    );
}

#[test]
fn valid_values_are_accepted() {
    let listen = environment(&[("TOLLKEY_LISTEN", "localhost:9000")])
        .unwrap()
        .server
        .listen;
    assert_eq!(listen.to_string(), "127.0.0.1:9000");
    assert_eq!(
        environment(&[("TOLLKEY_TRUSTED_PROXIES", "none")])
            .unwrap()
            .server
            .trusted_proxies,
        None
    );
    let proxies = environment(&[("TOLLKEY_TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8")])
        .unwrap()
        .server
        .trusted_proxies;
    assert_eq!(proxies.unwrap().networks().len(), 2);
    for (url, kind) in [
        ("sqlite://:memory:", DatabaseKind::SqliteMemory),
        (
            "sqlite://data/keys.db",
            DatabaseKind::SqliteFile("data/keys.db".into()),
        ),
        (
            "sqlite:///var/lib/tollkey/keys.db",
            DatabaseKind::SqliteFile("/var/lib/tollkey/keys.db".into()),
        ),
        ("postgres://localhost/keys", DatabaseKind::Postgres),
        (
            "postgresql:///keys?host=/run/postgresql",
            DatabaseKind::Postgres,
        ),
    ] {
        assert_eq!(
            environment(&[("DATABASE_URL", url)]).unwrap().database.kind,
            kind
        );
    }
}

#[test]
fn secret_can_be_read_from_a_file() {
    for text in [
        canary(),
        format!("{}\n", canary()),
        format!("{}\r\n", canary()),
    ] {
        let (_directory, path) = secret_file(&text);
        let settings = environment(&[("TOLLKEY_JWT_HS256_SECRET_FILE", &path)]).unwrap();
        assert!(
            matches!(settings.tokens.source, TokenSource::Hs256(secret) if secret.expose() == canary())
        );
    }
    let (_directory, path) = secret_file("sqlite://:memory:\n");
    let by_flag = resolve(&["--database-url-file", &path], &[], None).unwrap();
    assert_eq!(by_flag.database.kind, DatabaseKind::SqliteMemory);
    let by_file = resolve(&[], &[], Some(&format!("database_url_file = '{path}'"))).unwrap();
    assert_eq!(by_file.database.kind, DatabaseKind::SqliteMemory);
}

#[test]
fn secret_and_its_file_exclude_each_other() {
    let (_directory, path) = secret_file(&canary());
    let secret = canary();
    for (name, value) in [
        ("TOLLKEY_JWT_HS256_SECRET", secret.as_str()),
        ("DATABASE_URL", "sqlite://:memory:"),
    ] {
        let file = format!("{name}_FILE");
        let error = environment(&[(name, value), (&file, &path)]).unwrap_err();
        assert_eq!(
            error,
            format!(
                "{name} (environment) and {file} (environment) exclude each other; set one of them"
            )
        );
    }
    let error = resolve(
        &["--database-url", "sqlite://a.db"],
        &[("DATABASE_URL_FILE", &path)],
        None,
    )
    .unwrap_err();
    assert!(
        error.contains("(flag --database-url) and DATABASE_URL_FILE (environment) exclude"),
        "{error}"
    );
}

#[test]
fn secret_file_without_a_secret_is_rejected() {
    for text in ["", "\n", " \n"] {
        let (_directory, path) = secret_file(text);
        let error = environment(&[("TOLLKEY_JWT_HS256_SECRET_FILE", &path)]).unwrap_err();
        assert!(error.contains("is empty"), "{error}");
    }
    // The secret itself is in the variable that should have the path of its file.
    let error = environment(&[("DATABASE_URL_FILE", "canary")]).unwrap_err();
    assert!(
        error.starts_with("DATABASE_URL_FILE (environment): cannot read the file that it names: "),
        "{error}"
    );
    assert!(!error.contains("canary"), "{error}");
    let (_directory, path) = secret_file(&"x".repeat(70_000));
    let error = environment(&[("DATABASE_URL_FILE", &path)]).unwrap_err();
    assert!(error.contains("is larger than"), "{error}");
    let utf16: Vec<u8> = "canary".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(&path, [&[0xff, 0xfe], utf16.as_slice()].concat()).unwrap();
    let error = environment(&[("TOLLKEY_JWT_HS256_SECRET_FILE", &path)]).unwrap_err();
    assert!(error.contains("it is not UTF-8"), "{error}");
}

/// Stray characters before and after a secret, and the rule that rejects them.
const STRAY: [(&str, &str, &str); 28] = [
    (" ", "", "white space"),
    ("", " ", "white space"),
    ("\t", "", "white space"),
    ("", "\n\n", "white space"),
    ("", "\u{a0}", "white space"),
    ("\u{feff}", "", "byte order mark"),
    ("\"", "\"", "quotation mark"),
    ("'", "'", "quotation mark"),
    ("", "\u{201d}", "quotation mark"),
    ("\u{ab}", "\u{bb}", "quotation mark"),
    ("\u{bb}", "\u{ab}", "quotation mark"),
    ("\u{2039}", "", "quotation mark"),
    ("", "\u{b4}", "quotation mark"),
    ("", "\u{ff02}", "quotation mark"),
    ("\u{300c}", "", "quotation mark"),
    ("", "\u{1b}[0m", "control"),
    ("", "\u{200b}", "control or invisible"),
    ("", "\u{ad}", "control or invisible"),
    ("\u{180e}", "", "control or invisible"),
    ("\u{202a}", "", "control or invisible"),
    ("\u{202e}", "", "control or invisible"),
    ("", "\u{2066}", "control or invisible"),
    ("\u{2800}", "", "control or invisible"),
    ("", "\u{3164}", "control or invisible"),
    ("", "\u{fe0f}", "control or invisible"),
    ("", "\u{e0041}", "control or invisible"),
    ("", "\u{e0100}", "control or invisible"),
    ("two\nlines", "", "control"),
];

#[test]
fn stray_characters_of_a_secret_are_rejected() {
    let secrets = [
        (
            "DATABASE_URL",
            "postgres://tollkey:canary@db.example/keys".to_owned(),
        ),
        ("TOLLKEY_JWT_HS256_SECRET", canary()),
        ("TOLLKEY_SEALING_SECRET", canary()),
        ("TOLLKEY_OIDC_CLIENT_SECRET", canary()),
    ];
    assert_eq!(secrets.len(), SECRETS.len());
    for (name, secret) in secrets {
        let others = |variable: (&'static str, String)| {
            let mut variables: Vec<(&str, String)> = PROVIDER
                .map(|(name, value)| (name, value.to_owned()))
                .to_vec();
            variables.push(variable);
            variables
        };
        let resolved = |variables: &[(&'static str, String)], file: Option<&str>| {
            let variables: Vec<(&str, &str)> = variables
                .iter()
                .map(|(name, value)| (*name, value.as_str()))
                .collect();
            resolve(&[], &variables, file)
        };
        let file_name: &'static str = format!("{name}_FILE").leak();
        for (prefix, suffix, rule) in STRAY {
            let text = format!("{prefix}{secret}{suffix}");
            let (_directory, path) = secret_file(&format!("{text}\n"));
            let toml = format!(
                "{} = {}",
                name.trim_start_matches("TOLLKEY_").to_lowercase(),
                serde_json::json!(text)
            );
            let from_file = (path.clone(), resolved(&others((file_name, path)), None));
            for (place, result) in [
                (
                    "environment".to_owned(),
                    resolved(&others((name, text.clone())), None),
                ),
                from_file,
                (
                    "tollkey.toml".to_owned(),
                    resolved(
                        &PROVIDER.map(|(name, value)| (name, value.to_owned())),
                        Some(&toml),
                    ),
                ),
            ] {
                let error = result
                    .err()
                    .unwrap_or_else(|| panic!("{name} {text:?} from {place} is accepted"));
                assert!(
                    error.starts_with(&format!("{name} (")) && error.contains(&place),
                    "{text:?}: {error}"
                );
                assert!(
                    error.contains(rule) && !error.contains("canary"),
                    "{text:?}: {error}"
                );
            }
        }
        // Only one line break at the end of a file is ignored.
        for (suffix, is_valid) in [
            ("", true),
            ("\n", true),
            ("\r\n", true),
            ("\r", false),
            ("\n\n", false),
            ("\n\r", false),
        ] {
            let (_directory, path) = secret_file(&format!("{secret}{suffix}"));
            assert_eq!(
                resolved(&others((file_name, path)), None).is_ok(),
                is_valid,
                "{name} {suffix:?}"
            );
        }
    }
}

#[test]
fn database_url_flag_follows_the_rules_of_secrets() {
    let error = resolve(&["--database-url", "sqlite://canary.db "], &[], None).unwrap_err();
    assert!(
        error.starts_with(
            "DATABASE_URL (flag --database-url): must not begin or end with white space"
        ),
        "{error}"
    );
    assert!(!error.contains("canary"), "{error}");
}

#[test]
fn every_setting_has_a_rule_whose_error_hides_the_value() {
    let long = "canary".repeat(20);
    let rows: &[(&str, &str, &str)] = &[
        (
            "TOLLKEY_LISTEN",
            "canary:80",
            "must be an address and a port",
        ),
        (
            "DATABASE_URL",
            "canary://x",
            "must begin with sqlite:// or postgres://",
        ),
        (
            "DATABASE_URL_FILE",
            "canary",
            "cannot read the file that it names",
        ),
        (
            "TOLLKEY_DATABASE_POOL",
            "canary",
            "must be a whole number from 1 to 1000",
        ),
        (
            "TOLLKEY_DATABASE_WAIT_SECONDS",
            "canary",
            "must be a whole number from 0 to 3600",
        ),
        (
            "TOLLKEY_DRAIN_SECONDS",
            "canary",
            "must be a whole number from 0 to 300",
        ),
        (
            "TOLLKEY_CREDENTIAL_HEADERS",
            "canary",
            "must list one or more of authorization, x-api-key, x-commerce-api-key",
        ),
        ("TOLLKEY_MIGRATE", "canary", "must be true or false"),
        (
            "TOLLKEY_WORKERS",
            "canary",
            "must be a whole number from 1 to 1024",
        ),
        (
            "TOLLKEY_MAX_CONNECTIONS",
            "canary",
            "must be a whole number from 1 to 1000000",
        ),
        (
            "TOLLKEY_METRICS_LISTEN",
            "canary",
            "must be an address and a port",
        ),
        (
            "TOLLKEY_TRUSTED_PROXIES",
            "10.0.0.0/8,canary",
            "entry 2 must be a CIDR",
        ),
        (
            "TOLLKEY_MERCHANT_HEADER",
            "x canary",
            "must be the name of a header",
        ),
        ("TOLLKEY_ROUTE_BASE", "canary", "must begin with a slash"),
        (
            "TOLLKEY_LOG",
            "canary",
            "unknown level; the levels are off, error, warn, info, debug, trace",
        ),
        ("TOLLKEY_LOG_FORMAT", "canary", "must be pretty or json"),
        (
            "TOLLKEY_JWT_HS256_SECRET",
            "canary",
            "must have at least 32 bytes",
        ),
        (
            "TOLLKEY_JWT_HS256_SECRET_FILE",
            "canary",
            "cannot read the file that it names",
        ),
        ("TOLLKEY_JWT_PUBLIC_KEY_FILE", " ", "must not be empty"),
        ("TOLLKEY_JWT_JWKS_URL", "canary", "must be a URL"),
        (
            "TOLLKEY_JWT_ISSUER",
            " canary",
            "must not begin or end with white space",
        ),
        (
            "TOLLKEY_JWT_AUDIENCE",
            "'canary'",
            "must not begin or end with a quotation mark",
        ),
        (
            "TOLLKEY_JWT_ACCOUNT_CLAIM",
            "canary\n",
            "must not begin or end with white space",
        ),
        (
            "TOLLKEY_JWT_ROLES_CLAIM",
            "/canary/~2",
            "must be a JSON pointer",
        ),
        (
            "TOLLKEY_SEALING_SECRET",
            "canary",
            "must have at least 32 bytes",
        ),
        (
            "TOLLKEY_SEALING_SECRET_FILE",
            "canary",
            "cannot read the file that it names",
        ),
        (
            "TOLLKEY_DASHBOARD_TOKEN_SIGN_IN",
            "canary",
            "must be true or false",
        ),
        ("TOLLKEY_PUBLIC_URL", "canary", "must be a URL"),
        (
            "TOLLKEY_OIDC_ISSUER",
            "http://canary.example",
            "must be https",
        ),
        (
            "TOLLKEY_OIDC_CLIENT_ID",
            "\"canary\"",
            "must not begin or end with a quotation mark",
        ),
        (
            "TOLLKEY_OIDC_CLIENT_SECRET",
            "canary\u{feff}",
            "must not have a byte order mark",
        ),
        (
            "TOLLKEY_OIDC_CLIENT_SECRET_FILE",
            "canary",
            "cannot read the file that it names",
        ),
        (
            "TOLLKEY_OIDC_SCOPES",
            "profile,can ary",
            "entry 2 is not a scope",
        ),
        (
            "TOLLKEY_OIDC_ACCOUNT_CLAIM",
            "canary ",
            "must not begin or end with white space",
        ),
        (
            "TOLLKEY_OIDC_ROLES_CLAIM",
            "/canary~",
            "must be a JSON pointer",
        ),
        (
            "TOLLKEY_APPLICATION_KEY_LIMIT",
            "canary",
            "must be a whole number",
        ),
        (
            "TOLLKEY_ACCOUNT_KEY_LIMIT",
            "canary",
            "must be a whole number",
        ),
        (
            "TOLLKEY_KEY_DEPTH_LIMIT",
            "canary",
            "must be a whole number from 0 to 8",
        ),
        (
            "TOLLKEY_SCOPES",
            "Canary",
            "entry 1 must have 1 to 64 characters",
        ),
        (
            "TOLLKEY_COMMERCE_SCOPES",
            "canary",
            "entry 1 must also be in TOLLKEY_SCOPES",
        ),
        ("TOLLKEY_CACHE_BYTES", "canary", "must be a whole number"),
        ("TOLLKEY_CACHED_KEYS", "canary", "must be a whole number"),
        (
            "TOLLKEY_REMEMBERED_KEYS",
            "canary",
            "must be a whole number",
        ),
        (
            "TOLLKEY_CONFIG",
            "canary",
            "cannot read the file that it names",
        ),
        ("TOLLKEY_JWT_ISSUER", &long, ""),
    ];
    for (variable, value, rule) in rows {
        let others = [("TOLLKEY_JWT_ISSUER", "i"), ("TOLLKEY_JWT_AUDIENCE", "a")];
        let others = PROVIDER
            .into_iter()
            .chain(others)
            .filter(|(name, _)| name != variable);
        let variables: Vec<_> = others.chain([(*variable, *value)]).collect();
        if rule.is_empty() {
            assert!(environment(&variables).is_ok(), "{variable}");
            continue;
        }
        let error = environment(&variables).unwrap_err();
        assert!(
            error.starts_with(&format!("{variable} (environment): ")),
            "{variable}: {error}"
        );
        assert!(
            error.contains(rule) && !error.to_lowercase().contains("canary"),
            "{variable}: {error}"
        );
    }
    let unlisted: Vec<_> = SETTINGS
        .iter()
        .filter(|setting| rows.iter().all(|(variable, ..)| *variable != setting.env))
        .collect();
    assert!(unlisted.is_empty(), "settings without a row: {unlisted:?}");
}

#[test]
fn log_directives_are_accepted() {
    for (text, filter) in [
        ("info", "info"),
        ("WARN", "WARN"),
        ("off", "off"),
        ("info,tollkey_server=debug", "info,tollkey_server=debug"),
        ("warn, tollkey::http=Off", "warn,tollkey::http=Off"),
        (
            "info,tollkey_server[request]=trace,[span{field=value}]=debug,tollkey_store[query]",
            "info,tollkey_server[request]=trace,[span{field=value}]=debug,tollkey_store[query]",
        ),
    ] {
        assert_eq!(
            environment(&[("TOLLKEY_LOG", text)]).unwrap().log.filter,
            filter
        );
    }
}

#[test]
fn dashboard_token_sign_in_is_optional() {
    let setting = |value| {
        environment(&[("TOLLKEY_DASHBOARD_TOKEN_SIGN_IN", value)])
            .unwrap()
            .dashboard_token_sign_in
    };
    assert_eq!(environment(&[]).unwrap().dashboard_token_sign_in, None);
    assert_eq!(
        (setting("true"), setting("false")),
        (Some(true), Some(false))
    );
}

#[cfg(unix)]
#[test]
fn secret_that_every_user_can_read_is_a_warning() {
    use std::os::unix::fs::PermissionsExt as _;
    let chmod =
        |path: &str, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let secret = "3f9a1c27b9d04e86512fa77c0b9d3e158";
    for (mode, warns) in [
        (0o600, false),
        (0o640, false),
        (0o644, true),
        (0o604, true),
        (0o444, true),
    ] {
        let (_directory, path) = secret_file(secret);
        chmod(&path, mode);
        let settings = environment(&[("TOLLKEY_JWT_HS256_SECRET_FILE", &path)]).unwrap();
        let expected = Warning::ReadableSecret {
            setting: "TOLLKEY_JWT_HS256_SECRET",
            path: path.clone().into(),
            mode,
        };
        let warnings: Vec<_> = settings.warnings().collect();
        assert_eq!(
            warnings,
            if warns { vec![expected] } else { Vec::new() },
            "{mode:o}"
        );
        if warns {
            let text = warnings[0].to_string();
            assert!(
                text.contains(&format!("(mode {mode:o}); use chmod 600")) && !text.contains(secret),
                "{text}"
            );
        }

        // A configuration file is a warning only if it contains a secret.
        for (text, is_secret) in [
            (format!("jwt_hs256_secret = '{secret}'"), true),
            (
                "database_url = 'postgres://me:canary@db.example/keys'".to_owned(),
                true,
            ),
            (
                "database_url = 'postgres://me@db.example/keys'\nlog = 'warn'".to_owned(),
                false,
            ),
        ] {
            let (_directory, path) = secret_file(&text);
            chmod(&path, mode);
            let warnings = environment(&[("TOLLKEY_CONFIG", &path)])
                .unwrap()
                .warnings()
                .count();
            assert_eq!(warnings, usize::from(warns && is_secret), "{mode:o} {text}");
        }
    }
}

#[test]
fn weak_secret_is_a_warning() {
    let weak = "a".repeat(40);
    for name in [
        "TOLLKEY_JWT_HS256_SECRET",
        "TOLLKEY_SEALING_SECRET",
        "TOLLKEY_OIDC_CLIENT_SECRET",
    ] {
        let variables: Vec<_> = PROVIDER
            .into_iter()
            .chain([(name, weak.as_str())])
            .collect();
        let warnings: Vec<_> = environment(&variables).unwrap().warnings().collect();
        let reason = "is one repeated character";
        assert_eq!(
            warnings,
            [Warning::WeakSecret {
                setting: name,
                reason
            }]
        );
        assert!(!warnings[0].to_string().contains(&weak));
    }
}

#[test]
fn public_key_on_one_line_is_a_warning() {
    for (text, expected) in [
        ("-----BEGIN PUBLIC KEY-----\\nEXAMPLE\\n", 1),
        ("-----BEGIN PUBLIC KEY-----\nEXAMPLE\n", 0),
    ] {
        let (_directory, path) = secret_file(text);
        let warnings: Vec<_> = environment(&[
            ("TOLLKEY_JWT_PUBLIC_KEY_FILE", &path),
            ("TOLLKEY_JWT_ISSUER", "i"),
            ("TOLLKEY_JWT_AUDIENCE", "a"),
        ])
        .unwrap()
        .warnings()
        .collect();
        assert_eq!(warnings.len(), expected, "{warnings:?}");
    }
}

#[test]
fn effective_settings_have_a_source_and_no_secret() {
    let secret = canary();
    let (_directory, path) = secret_file(&format!("{secret}\n"));
    let settings = resolve(
        &["--listen", "127.0.0.1:1"],
        &[
            ("DATABASE_URL", "postgres://me:canary@db.example/keys"),
            ("TOLLKEY_JWT_HS256_SECRET_FILE", &path),
            ("TOLLKEY_LOG", "warn"),
        ],
        Some(&format!("sealing_secret = '{secret}'\nlog_format = 'json'")),
    )
    .unwrap();
    let shown = |name: &str| {
        let setting = settings
            .effective
            .iter()
            .find(|setting| setting.name == name)
            .unwrap();
        (setting.value.clone(), setting.from.to_string())
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(settings.effective.len(), SETTINGS.len());
    assert_eq!(
        shown("TOLLKEY_LISTEN"),
        (some("127.0.0.1:1"), "flag --listen".into())
    );
    assert_eq!(shown("TOLLKEY_LOG"), (some("warn"), "environment".into()));
    assert_eq!(
        shown("TOLLKEY_MERCHANT_HEADER"),
        (some("x-merchant-id"), "default".into())
    );
    assert_eq!(shown("TOLLKEY_METRICS_LISTEN"), (None, "default".into()));
    assert_eq!(
        shown("TOLLKEY_JWT_ROLES_CLAIM"),
        (some("roles"), "default".into())
    );
    assert_eq!(
        shown("TOLLKEY_WORKERS").0,
        Some(settings.server.workers().to_string())
    );
    assert_eq!(
        shown("DATABASE_URL"),
        (
            some("PostgreSQL database keys at db.example:5432"),
            "environment".into()
        )
    );
    assert_eq!(
        shown("TOLLKEY_JWT_HS256_SECRET"),
        (some("(hidden)"), path.clone())
    );
    assert_eq!(
        shown("TOLLKEY_JWT_HS256_SECRET_FILE"),
        (Some(path.clone()), "environment".into())
    );
    let (value, from) = shown("TOLLKEY_SEALING_SECRET");
    assert!(
        value == some("(hidden)") && from.ends_with("tollkey.toml"),
        "{from}"
    );
    assert!(shown("TOLLKEY_LOG_FORMAT").1.ends_with("tollkey.toml"));
    assert!(!format!("{:?}", settings.effective).contains("canary"));
}

#[test]
fn effective_value_is_the_one_in_use() {
    let shown = |settings: &Settings, name: &str| {
        let setting = settings
            .effective
            .iter()
            .find(|setting| setting.name == name)
            .unwrap();
        (
            setting.value.clone().unwrap_or_default(),
            setting.from.to_string(),
        )
    };
    let default = environment(&[]).unwrap();
    let (value, from) = shown(&default, "TOLLKEY_MAX_CONNECTIONS");
    assert!(
        (16..=10_000).contains(&value.parse().unwrap()) && from == "default",
        "{value}"
    );
    assert_eq!(
        shown(&default, "TOLLKEY_DASHBOARD_TOKEN_SIGN_IN"),
        ("true".into(), "default".into())
    );
    assert_eq!(
        shown(&default, "TOLLKEY_CACHED_KEYS"),
        ("1000000".into(), "default".into())
    );
    let secret = "f3a1c27b9d04e86512fa77c0b9d3e158EXAMPLE";
    let variables = [
        ("TOLLKEY_JWT_HS256_SECRET", secret),
        ("TOLLKEY_REMEMBERED_KEYS", "5"),
        ("TOLLKEY_MAX_CONNECTIONS", "100"),
    ];
    let set = environment(&variables).unwrap();
    assert_eq!(
        shown(&set, "TOLLKEY_DASHBOARD_TOKEN_SIGN_IN"),
        ("false".into(), "default".into())
    );
    assert_eq!(
        shown(&set, "TOLLKEY_CACHED_KEYS"),
        ("5".into(), "environment".into())
    );
    assert_eq!(
        shown(&set, "TOLLKEY_MAX_CONNECTIONS"),
        ("100".into(), "environment".into())
    );
}

#[test]
fn errors_and_debug_output_hide_secrets() {
    let short = &canary()[..31];
    let error = environment(&[("TOLLKEY_JWT_HS256_SECRET", short)]).unwrap_err();
    assert!(
        error.starts_with("TOLLKEY_JWT_HS256_SECRET (environment): must have at least 32 bytes"),
        "{error}"
    );
    let (_directory, path) = secret_file(short);
    let error = environment(&[("TOLLKEY_JWT_HS256_SECRET_FILE", &path)]).unwrap_err();
    assert!(
        error.contains("must have at least 32 bytes; create one with") && !error.contains("canary"),
        "{error}"
    );
    for url in ["mysql://u:canary@h/d", "sqlite://canary?x", "canary"] {
        assert!(
            !environment(&[("DATABASE_URL", url)])
                .unwrap_err()
                .contains("canary")
        );
    }

    let url = "postgres://u:canary@localhost/d";
    let cli = Cli::try_parse_from(["tollkey", "--database-url", url]).unwrap();
    assert_eq!(format!("{:?}", cli.options), "{\"database-url\"}");
    let secret = canary();
    let settings =
        environment(&[("DATABASE_URL", url), ("TOLLKEY_JWT_HS256_SECRET", &secret)]).unwrap();
    assert!(!format!("{settings:?}").contains("canary"));
}

#[test]
fn database_url_flag_with_a_password_is_rejected() {
    for url in [
        "postgres://me:canary@db.example/tollkey",
        "postgres://db.example/tollkey?user=me&password=canary",
        "postgres://me@db.example/tollkey?pass%77ord=canary",
        "postgres://me@db.example/tollkey?sslpassword=canary",
    ] {
        let error = resolve(&[&format!("--database-url={url}")], &[], None).unwrap_err();
        assert!(
            error.contains("must not have a password on the command line"),
            "{error}"
        );
        assert!(!error.contains("canary"), "{error}");
        assert!(environment(&[("DATABASE_URL", url)]).is_ok());
    }
    for url in ["postgres://me@db.example:5432/tollkey", "sqlite://keys.db"] {
        assert!(
            resolve(&[&format!("--database-url={url}")], &[], None).is_ok(),
            "{url}"
        );
    }
}

#[test]
fn token_secret_has_no_flag() {
    let error = Cli::try_parse_from(["tollkey", "--jwt-hs256-secret", "x"])
        .err()
        .unwrap();
    assert_eq!(error.kind(), clap::error::ErrorKind::UnknownArgument);
}

#[test]
fn key_sources_exclude_each_other() {
    let secret = canary();
    let error = environment(&[
        ("TOLLKEY_JWT_HS256_SECRET", &secret),
        ("TOLLKEY_JWT_JWKS_URL", "https://issuer.example/jwks"),
    ])
    .unwrap_err();
    assert_eq!(
        error,
        "TOLLKEY_JWT_HS256_SECRET (environment) and TOLLKEY_JWT_JWKS_URL (environment) exclude each other; set one of them"
    );
    let error = resolve(
        &["--jwt-public-key-file", "key.pem"],
        &[],
        Some("jwt_jwks_url = 'https://issuer.example'"),
    )
    .unwrap_err();
    assert!(
        error.starts_with("TOLLKEY_JWT_PUBLIC_KEY_FILE (flag --jwt-public-key-file) and"),
        "{error}"
    );
}

#[test]
fn public_key_requires_issuer_and_audience_and_gives_no_role() {
    for source in [
        ("TOLLKEY_JWT_PUBLIC_KEY_FILE", "key.pem"),
        ("TOLLKEY_JWT_JWKS_URL", "https://issuer.example/jwks"),
        ("TOLLKEY_JWT_JWKS_URL", "http://127.0.0.1:8081/jwks"),
        ("TOLLKEY_JWT_JWKS_URL", "http://[::1]:8081/jwks"),
        ("TOLLKEY_JWT_JWKS_URL", "http://localhost:8081/jwks"),
    ] {
        let (issuer, audience) = (("TOLLKEY_JWT_ISSUER", "i"), ("TOLLKEY_JWT_AUDIENCE", "a"));
        let error = environment(&[source, audience]).unwrap_err();
        assert_eq!(
            error,
            format!(
                "TOLLKEY_JWT_ISSUER must be set, because {} is (environment)",
                source.0
            )
        );
        let error = environment(&[source, issuer]).unwrap_err();
        assert_eq!(
            error,
            format!(
                "TOLLKEY_JWT_AUDIENCE must be set, because {} is (environment)",
                source.0
            )
        );
        let settings = environment(&[source, issuer, audience]).unwrap();
        assert!(matches!(
            settings.tokens.source,
            TokenSource::PublicKeyFile(_) | TokenSource::Jwks(_)
        ));
        assert_eq!(settings.tokens.roles_claim, None);
        let settings = environment(&[
            source,
            issuer,
            audience,
            ("TOLLKEY_JWT_ROLES_CLAIM", "groups"),
        ])
        .unwrap();
        assert_eq!(settings.tokens.roles_claim.as_deref(), Some("groups"));
    }
}

#[test]
fn public_key_can_be_read_from_a_pipe() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // Ed25519, from RFC 8410, section 10.1.
    let key = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
    write!(
        writer,
        "-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n"
    )
    .unwrap();
    drop(writer);
    let path = format!("/dev/fd/{}", reader.as_raw_fd());
    let variables = [
        ("TOLLKEY_JWT_PUBLIC_KEY_FILE", path.as_str()),
        ("TOLLKEY_JWT_ISSUER", "i"),
        ("TOLLKEY_JWT_AUDIENCE", "a"),
    ];
    let settings = environment(&variables).unwrap();
    for _ in 0..2 {
        assert!(TokenVerifier::open(&settings.tokens, None).is_ok());
    }
}

const PROVIDER: [(&str, &str); 3] = [
    ("TOLLKEY_OIDC_ISSUER", "https://id.example/realms/shop"),
    ("TOLLKEY_OIDC_CLIENT_ID", "tollkey"),
    ("TOLLKEY_PUBLIC_URL", "https://keys.example.com/"),
];

#[test]
fn incomplete_provider_is_rejected() {
    assert!(environment(&[]).unwrap().oidc.is_none());
    assert!(
        environment(&PROVIDER[2..]).unwrap().oidc.is_none(),
        "the public URL does not require a provider"
    );
    let oidc = environment(&PROVIDER).unwrap().oidc.unwrap();
    assert_eq!(oidc.issuer, "https://id.example/realms/shop");
    assert_eq!(
        (oidc.client_id.as_str(), oidc.public_url.as_str()),
        ("tollkey", "https://keys.example.com")
    );
    assert!(oidc.client_secret.is_none() && oidc.scopes.is_empty());
    assert_eq!(
        (oidc.account_claim.as_str(), oidc.roles_claim),
        ("account_id", None)
    );

    for missing in ["TOLLKEY_OIDC_CLIENT_ID", "TOLLKEY_PUBLIC_URL"] {
        let rest: Vec<_> = PROVIDER
            .into_iter()
            .filter(|(name, _)| *name != missing)
            .collect();
        let error = environment(&rest).unwrap_err();
        assert_eq!(
            error,
            format!("{missing} must be set, because TOLLKEY_OIDC_ISSUER is (environment)")
        );
    }
    let secret = canary();
    let (_directory, path) = secret_file(&secret);
    for (name, value) in [
        ("TOLLKEY_OIDC_CLIENT_ID", "tollkey"),
        ("TOLLKEY_OIDC_CLIENT_SECRET", &secret),
        ("TOLLKEY_OIDC_SCOPES", "profile"),
        ("TOLLKEY_OIDC_ACCOUNT_CLAIM", "org"),
        ("TOLLKEY_OIDC_ROLES_CLAIM", "roles"),
    ] {
        let error = environment(&[(name, value)]).unwrap_err();
        assert_eq!(
            error,
            format!("TOLLKEY_OIDC_ISSUER must be set, because {name} is (environment)")
        );
    }
    let error = environment(&[("TOLLKEY_OIDC_CLIENT_SECRET_FILE", &path)]).unwrap_err();
    assert!(
        error.starts_with(
            "TOLLKEY_OIDC_ISSUER must be set, because TOLLKEY_OIDC_CLIENT_SECRET is ("
        ),
        "{error}"
    );
}

#[test]
fn all_provider_settings_are_read() {
    let secret = canary();
    let (_directory, path) = secret_file(&format!("{secret}\n"));
    let mut variables = PROVIDER.to_vec();
    variables.extend([
        ("TOLLKEY_OIDC_CLIENT_SECRET_FILE", path.as_str()),
        (
            "TOLLKEY_OIDC_SCOPES",
            "profile, openid,https://id.example/api.read",
        ),
        ("TOLLKEY_OIDC_ACCOUNT_CLAIM", "org"),
        ("TOLLKEY_OIDC_ROLES_CLAIM", "https://id.example/roles"),
    ]);
    let settings = environment(&variables).unwrap();
    assert!(!format!("{settings:?}").contains("canary"));
    let oidc = settings.oidc.unwrap();
    assert_eq!(oidc.client_secret.unwrap().expose(), secret);
    assert_eq!(oidc.scopes, ["profile", "https://id.example/api.read"]);
    assert_eq!(
        (oidc.account_claim.as_str(), oidc.roles_claim.as_deref()),
        ("org", Some("https://id.example/roles"))
    );

    variables.push(("TOLLKEY_OIDC_CLIENT_SECRET", &secret));
    assert!(
        environment(&variables)
            .unwrap_err()
            .contains("exclude each other")
    );
}

#[test]
fn invalid_provider_settings_are_rejected() {
    for (variable, value, rule) in [
        ("TOLLKEY_OIDC_ISSUER", "id.example", "must be a URL"),
        ("TOLLKEY_OIDC_ISSUER", "http://id.example", "must be https"),
        (
            "TOLLKEY_OIDC_ISSUER",
            "https://u:p@id.example",
            "must not have a user name or password",
        ),
        (
            "TOLLKEY_OIDC_ISSUER",
            "https://id.example/?realm=x",
            "must not have a query",
        ),
        (
            "TOLLKEY_OIDC_ISSUER",
            "https://id.example/#x",
            "must not have a query",
        ),
        ("TOLLKEY_PUBLIC_URL", "keys.example.com", "must be a URL"),
        (
            "TOLLKEY_PUBLIC_URL",
            "http://keys.example.com",
            "must be https",
        ),
        (
            "TOLLKEY_PUBLIC_URL",
            "https://keys.example.com/?x",
            "must not have a query or fragment",
        ),
        (
            "TOLLKEY_PUBLIC_URL",
            "https://keys.example.com/keys#x",
            "must not have a query or fragment",
        ),
        (
            "TOLLKEY_PUBLIC_URL",
            "https://keys.example.com/a/../keys",
            "must have a path of at most",
        ),
        (
            "TOLLKEY_PUBLIC_URL",
            "https://keys.example.com/a%2e",
            "must have a path of at most",
        ),
        (
            "TOLLKEY_PUBLIC_URL",
            "https://keys.example.com//keys",
            "must have a path of at most",
        ),
        (
            "TOLLKEY_PUBLIC_URL",
            "https://keys.example.com\\keys",
            "must have a path of at most",
        ),
        (
            "TOLLKEY_PUBLIC_URL",
            "https:///keys.example.com",
            "must be written in full",
        ),
        (
            "TOLLKEY_PUBLIC_URL",
            "https:keys.example.com/keys",
            "must be written in full",
        ),
        (
            "TOLLKEY_PUBLIC_URL",
            "https://keys.example.com/api",
            "must not have a path that the server uses itself",
        ),
        (
            "TOLLKEY_OIDC_SCOPES",
            "profile email",
            "entry 1 is not a scope",
        ),
        (
            "TOLLKEY_OIDC_SCOPES",
            "profile,",
            "must not have an empty entry",
        ),
    ] {
        let mut variables: Vec<_> = PROVIDER
            .into_iter()
            .filter(|(name, _)| *name != variable)
            .collect();
        variables.push((variable, value));
        let error = environment(&variables).unwrap_err();
        assert!(
            error.starts_with(&format!("{variable} (environment): ")) && error.contains(rule),
            "{value}: {error}"
        );
    }
    for (issuer, public, path) in [
        ("http://127.0.0.1:8081", "http://localhost:8080", ""),
        ("http://[::1]:8081/", "http://127.0.0.1:8080/", ""),
        ("https://id.example/", "https://keys.example.com:8443", ""),
        ("https://id.example/", "https://example.com/keys", "/keys"),
        (
            "https://id.example/",
            "https://example.com/team/keys/",
            "/team/keys",
        ),
    ] {
        let variables = [
            PROVIDER[1],
            ("TOLLKEY_OIDC_ISSUER", issuer),
            ("TOLLKEY_PUBLIC_URL", public),
        ];
        let settings = environment(&variables).unwrap();
        assert_eq!(settings.public_path.to_string(), path);
        let oidc = settings.oidc.unwrap();
        assert_eq!(oidc.issuer, issuer, "unchanged");
        assert_eq!(oidc.public_url, public.trim_end_matches('/'));
    }
}

#[test]
fn help_names_variable_and_default() {
    let help = <Cli as clap::CommandFactory>::command()
        .render_long_help()
        .to_string();
    assert!(help.contains(
        "Address and port to listen on; port 0 picks a free port [default: 127.0.0.1:8080] [env: TOLLKEY_LISTEN]"
    ));
}
