//! Tests of the sources and rules of settings.

use std::{
    collections::HashSet,
    fs::{self, Permissions},
    io::Write as _,
    os::{
        fd::AsRawFd as _,
        unix::fs::{PermissionsExt as _, symlink},
    },
};

use clap::{Command, error::ErrorKind};
use tollkey_core::{Family, IpList, RouteBase, Scope, credential::CredentialHeaders};

use super::*;
use crate::{auth::jwt::TokenVerifier, listen_address::SocketGroup};

/// Parses the flags of a command line with one subcommand, `serve`.
fn options(flags: &[&str]) -> Result<Options, clap::Error> {
    let command = Command::new("tollkey").no_binary_name(true);
    let command = Options::add_to(command.subcommand(Command::new("serve")));
    let matches = command.try_get_matches_from(flags)?;
    Ok(Options::from_matches(&matches))
}

fn resolve(
    flags: &[&str],
    variables: &[(&str, &str)],
    file: Option<&str>,
) -> Result<Settings, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join(DEFAULT_FILES[0]);
    if let Some(text) = file {
        fs::write(&path, text).unwrap();
    }
    let env = |name: &str| {
        let variable = variables.iter().find(|(known, _)| *known == name);
        variable.map(|(_, value)| OsString::from(value))
    };
    let options = options(flags).map_err(|error| error.to_string())?;
    Settings::resolve(&options, &env, &path).map_err(|error| error.to_string())
}

fn environment(variables: &[(&str, &str)]) -> Result<Settings, String> {
    resolve(&[], variables, None)
}

fn flags(flags: &[&str]) -> Result<Settings, String> {
    resolve(flags, &[], None)
}

fn file(text: &str) -> Result<Settings, String> {
    resolve(&[], &[], Some(text))
}

/// Asserts that the error begins with `start`, contains `rule` and shows no canary.
#[track_caller]
fn assert_rejected(result: Result<Settings, String>, start: &str, rule: &str) {
    let error = result.unwrap_err();
    assert!(error.starts_with(start) && error.contains(rule), "{error}");
    assert!(!error.to_lowercase().contains("canary"), "{error}");
}

fn warnings(settings: &Settings) -> Vec<String> {
    settings.warnings().map(|warning| warning.text).collect()
}

/// Returns the value of a setting in effect, and its source.
fn effective(settings: &Settings, name: &str) -> (Option<String>, String) {
    let mut all = settings.effective.iter();
    let setting = all.find(|setting| setting.name == name).unwrap();
    (setting.value.clone(), setting.from.to_string())
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
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
    assert_eq!(settings.server.listen.first().to_string(), "127.0.0.1:8080");
    assert!(settings.server.workers() >= 1);
    assert_eq!(settings.server.metrics_listen, None);
    assert_eq!(settings.server.grpc_listen, None);
    let loopback = IpList::parse(["127.0.0.0/8", "::1/128"]).unwrap();
    assert_eq!(settings.server.trusted_proxies, Some(loopback));
    assert_eq!(settings.server.merchant_header, "x-merchant-id");
    assert_eq!(settings.server.route_base, RouteBase::default());
    let headers = CredentialHeaders::default();
    assert_eq!(settings.server.credential_headers, headers);
    assert_eq!(settings.log.filter, "info");
    assert_eq!(settings.log.format, LogFormat::Pretty);
    assert_eq!(settings.database.url.expose(), "sqlite://tollkey.db");
    let database = DatabaseKind::SqliteFile(Path::new("tollkey.db"));
    assert_eq!(settings.database.kind(), database);
    assert_eq!(settings.database.wait, Duration::from_secs(30));
    assert!(!settings.database.migrate);
    assert!(matches!(settings.tokens.source, TokenSource::Development));
    assert_eq!(settings.tokens.claims.account_claim, "account_id");
    assert_eq!(settings.tokens.claims.roles_claim, some("roles"));
    assert_eq!(settings.key_limits.application_key_limit, 20);
    assert_eq!(settings.catalogue, Catalogue::default());
    let CacheSettings { bytes, keys } = settings.cache;
    assert_eq!((bytes, keys), (256 * 1024 * 1024, 1_000_000));
    assert!(warnings(&settings).is_empty());
}

#[test]
fn flag_overrides_environment_and_environment_overrides_file() {
    let file = Some("merchant_header = \"x-file\"");
    let variables = [("TOLLKEY_MERCHANT_HEADER", "x-env")];
    let flags = ["--merchant-header", "x-flag"];
    let header = |flags: &[&str], variables: &[(&str, &str)], file| {
        let settings = resolve(flags, variables, file).unwrap();
        settings.server.merchant_header
    };
    assert_eq!(header(&[], &[], None), "x-merchant-id");
    assert_eq!(header(&[], &[], file), "x-file");
    assert_eq!(header(&[], &variables, file), "x-env");
    assert_eq!(header(&flags, &variables, file), "x-flag");
}

#[test]
fn flags_are_accepted_before_and_after_the_subcommand() {
    for arguments in [["--workers", "3", "serve"], ["serve", "--workers", "3"]] {
        let settings = flags(&arguments).unwrap();
        assert_eq!(settings.server.workers(), 3, "{arguments:?}");
    }
    assert!(options(&["serve"]).is_ok());
}

#[test]
fn switch_without_a_value_means_true() {
    for arguments in [&["--migrate"][..], &["--migrate", "serve"]] {
        assert!(flags(arguments).unwrap().database.migrate);
    }
    let postgres = [
        ("TOLLKEY_MIGRATE", "true"),
        ("DATABASE_URL", "postgres://localhost/keys"),
    ];
    let off = resolve(&["--migrate=false"], &postgres, None).unwrap();
    assert!(!off.database.migrate);
}

#[test]
fn setting_without_effect_on_the_database_is_rejected() {
    let (file, memory, server) = ("sqlite://keys.db", "sqlite://:memory:", "postgres:///keys");
    let wait = "TOLLKEY_DATABASE_WAIT_SECONDS";
    for (setting, good, other, rejected_by) in [
        (wait, "0", "30", vec![file, memory]),
        ("TOLLKEY_DATABASE_POOL", "1", "8", vec![memory]),
        ("TOLLKEY_MIGRATE", "true", "false", vec![file, memory]),
    ] {
        for url in [file, memory, server] {
            let with = |value: &str| environment(&[("DATABASE_URL", url), (setting, value)]);
            assert!(with(good).is_ok(), "{setting} {url}");
            if rejected_by.contains(&url) {
                let rule = format!("{setting} (environment): must be {good} or left out with ");
                assert_rejected(with(other), &rule, "");
            } else {
                assert!(with(other).is_ok(), "{setting} {url}");
            }
        }
    }
}

#[test]
fn migration_cannot_be_turned_off_on_sqlite() {
    for result in [flags(&["--migrate=false"]), file("migrate = false")] {
        assert_rejected(result, "", "must be true or left out with SQLite");
    }
    let postgres = "migrate = false\ndatabase_url = 'postgres://localhost/keys'";
    assert!(file(postgres).is_ok());
}

#[test]
fn empty_value_is_rejected_even_if_it_is_overridden() {
    for Setting { env, .. } in SETTINGS.iter() {
        for empty in ["", "  "] {
            let error = environment(&[(env, empty)]).unwrap_err();
            let rule = "must not be empty; leave it out instead";
            assert_eq!(error, format!("{env} (environment): {rule}"));
        }
    }
    let variable = [("TOLLKEY_LISTEN", "")];
    let overridden = resolve(&["--listen", "127.0.0.1:1"], &variable, None);
    assert_rejected(overridden, "TOLLKEY_LISTEN (environment)", "");
    assert_rejected(flags(&["--log", ""]), "TOLLKEY_LOG (flag --log)", "");
    assert_rejected(file("log = ''"), "TOLLKEY_LOG (", "tollkey.toml");
    let config = environment(&[("TOLLKEY_CONFIG", "")]);
    assert_rejected(config, "TOLLKEY_CONFIG (environment)", "");
}

#[test]
fn flag_variable_and_field_have_the_same_name() {
    let variables: HashSet<_> = SETTINGS.iter().map(|setting| &setting.env).collect();
    assert_eq!(variables.len(), SETTINGS.len());
    for setting in setting::all() {
        let Setting {
            env, flag, help, ..
        } = setting;
        match flag {
            Some(flag) => assert_eq!(flag.replace('-', "_"), setting.field()),
            None => assert!(
                env.ends_with("_SECRET"),
                "{env} has no flag, but is not a secret"
            ),
        }
        let is_database = env == "DATABASE_URL" || env == "DATABASE_URL_FILE";
        assert!(is_database || env.starts_with("TOLLKEY_"), "{env}");
        assert!(!help.ends_with('.') && help.len() > 10, "{env}");
    }
}

#[test]
fn file_can_set_typed_values() {
    let text = format!(
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
    );
    let settings = file(&text).unwrap();
    assert_eq!(settings.server.listen.first().to_string(), "[::1]:0");
    assert_eq!(settings.database.kind(), DatabaseKind::Postgres);
    assert_eq!(settings.database.pool, 4);
    assert!(settings.database.migrate);
    assert_eq!(settings.server.workers(), 2);
    assert_eq!(settings.server.trusted_proxies.unwrap().networks().len(), 2);
    assert_eq!(settings.server.merchant_header, "x-shop");
    assert_eq!(settings.server.route_base, RouteBase::none());
    let headers = settings.server.credential_headers;
    assert!(headers.names().eq(["x-api-key", "x-commerce-api-key"]));
    assert_eq!(settings.log.format, LogFormat::Json);
    let TokenSettings { source, claims } = settings.tokens;
    assert!(matches!(source, TokenSource::Hs256(secret) if secret.expose() == canary()));
    assert_eq!(claims.issuer, some("https://issuer.example"));
    assert_eq!(claims.roles_claim, some("https://example.com/roles"));
    assert_eq!(settings.key_limits.application_key_limit, 5);
    assert_eq!((settings.cache.bytes, settings.cache.keys), (8 << 20, 10));
    let commerce = settings
        .catalogue
        .expand(Family::Commerce, &[Scope::COMMERCE]);
    assert!(commerce.contains_all(settings.catalogue.needed(["refunds:read"]).unwrap()));
    assert!(!commerce.contains_all(settings.catalogue.needed(["refunds:write"]).unwrap()));
}

#[test]
fn file_with_unknown_field_or_wrong_type_is_rejected() {
    let (list, commas) = (
        "must be an array of strings",
        "must be an array of strings without commas",
    );
    let misspelled = "unknown field \"lisen\"; did you mean \"listen\"?";
    for (text, expected) in [
        ("lisen = \"127.0.0.1:1\"", misspelled),
        ("[listen]\nport = 1", "TOLLKEY_LISTEN"),
        ("config = \"x\"", "unknown field \"config\""),
        ("workers = \"2\"", "must be an integer"),
        ("listen = 8080", list),
        ("socket_mode = 0o660", "must be a string"),
        ("migrate = \"yes\"", "must be true or false"),
        ("scopes = [1]", commas),
        ("scopes = [\"a,b\"]", commas),
        ("scopes = 1", list),
        ("workers = 1\nworkers = 2", "line 2: duplicate key"),
    ] {
        let error = file(text).unwrap_err();
        assert!(error.contains("tollkey.toml"), "{text}: {error}");
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn error_of_a_malformed_file_does_not_quote_it() {
    let secret = canary();
    for (line, rule) in [
        (format!("jwt_hs256_secret = {secret}"), "line 2"),
        (format!("jwt_hs256_secret = \"{secret}"), "line 2"),
        (
            format!("jwt_hs256_secret = \"{secret}\" \"{secret}\""),
            "line 2",
        ),
        (
            format!("jwt_hs256_secret = [\"{secret}\"]"),
            "must be a string",
        ),
        (
            format!("jwt_hs256_secret.x = \"{secret}\""),
            "must be a string",
        ),
    ] {
        assert_rejected(file(&format!("workers = 1\n{line}")), "", rule);
    }
}

#[test]
fn named_configuration_file_must_exist() {
    let (_directory, path) = secret_file("workers = 7");
    let by_flag = resolve(&["--config", &path], &[], Some("workers = 1"));
    let by_variable = environment(&[("TOLLKEY_CONFIG", &path)]);
    for settings in [by_flag, by_variable] {
        assert_eq!(settings.unwrap().server.workers(), 7);
    }
    let rule = "TOLLKEY_CONFIG (environment): cannot read the file that it names: ";
    assert_rejected(environment(&[("TOLLKEY_CONFIG", "missing.toml")]), rule, "");
}

#[test]
fn unreadable_default_file_is_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let resolve = |path: &Path| Settings::resolve(&Options::default(), &|_| None, path);
    let [link, folder, latin1, missing] =
        ["link.toml", "folder.toml", "latin1.toml", "missing.toml"]
            .map(|name| directory.path().join(name));
    symlink("nowhere", &link).unwrap();
    fs::create_dir(&folder).unwrap();
    fs::write(&latin1, b"log = \"caf\xe9\"").unwrap();
    for path in [link, folder, latin1] {
        let error = resolve(&path).unwrap_err().to_string();
        let start = format!("configuration file {}: ", path.display());
        assert!(error.starts_with(&start), "{error}");
    }
    assert!(resolve(&missing).is_ok());
}

#[test]
fn file_of_the_package_is_read_if_the_working_directory_has_none() {
    let directory = tempfile::tempdir().unwrap();
    let [own, packaged] = ["own.toml", "packaged.toml"].map(|name| directory.path().join(name));
    let files = [own.as_path(), packaged.as_path()];
    assert_eq!(default_file(&files), packaged);
    fs::write(&own, "").unwrap();
    assert_eq!(default_file(&files), own);
    fs::remove_file(&own).unwrap();
    symlink("nowhere", &own).unwrap();
    assert_eq!(default_file(&files), own, "the link is reported");
}

#[test]
fn file_of_the_package_lists_every_setting_with_its_default() {
    let packaged = configuration_file();
    let mut defaults = Vec::new();
    let mut fields = Vec::new();
    for line in packaged.lines() {
        let (is_comment, line) = match line.strip_prefix('#') {
            Some(line) => (true, line),
            None => (false, line),
        };
        let Some((name, value)) = line.split_once(" = ") else {
            assert!(is_comment || line.is_empty(), "{line}");
            continue;
        };
        let setting = SETTINGS.iter().find(|setting| setting.field() == name);
        // A line of help can have an equals sign, too.
        let Some(setting) = setting else { continue };
        fields.push(name);
        let own = setting::PACKAGED
            .iter()
            .find(|(env, _)| *env == setting.env);
        assert_eq!(own.is_none(), is_comment, "{line}");
        match own {
            Some((_, own)) => {
                // The package creates the file that a setting names.
                if let Err(error) = file(line) {
                    assert!(error.contains("cannot read the file"), "{line}: {error}");
                }
                assert_eq!(value.trim_matches('"'), *own);
            }
            None if setting.default.is_some() => defaults.push(line),
            None => {}
        }
    }
    let all: Vec<_> = SETTINGS.iter().map(Setting::field).collect();
    assert_eq!(fields, all);
    let values = |settings: Settings| settings.effective.into_iter().map(|it| (it.name, it.value));
    for line in defaults {
        match file(line) {
            Ok(settings) => assert!(values(settings).eq(values(file("").unwrap())), "{line}"),
            // The setting has no effect without another one.
            Err(error) => assert!(
                error.contains("must be set, because") || error.contains("or left out with"),
                "{line}: {error}"
            ),
        }
    }
}

/// Invalid values of every setting, each with a part of the rule that rejects it.
const INVALID: &str = "\
TOLLKEY_LISTEN=8080 -> must be an address and a port
TOLLKEY_LISTEN=example.com:80 -> must be an address and a port
TOLLKEY_LISTEN=canary:80 -> must be an address and a port
TOLLKEY_LISTEN=unix:canary -> must name a Unix socket by its absolute path
TOLLKEY_SOCKET_MODE=canary -> must be three octal digits
TOLLKEY_SOCKET_GROUP=\x20canary -> must not begin or end with white space
TOLLKEY_METRICS_LISTEN=off -> must be an address and a port
TOLLKEY_METRICS_LISTEN=canary -> must be an address and a port
TOLLKEY_GRPC_LISTEN=canary -> must be an address and a port
TOLLKEY_WORKERS=0 -> must be a whole number from 1 to 1024
TOLLKEY_WORKERS=many -> must be a whole number from 1 to 1024
TOLLKEY_WORKERS=111111111111111111111111111111111111111111111111111111111111 -> must be a whole number from 1 to 1024
TOLLKEY_WORKERS=canary -> must be a whole number from 1 to 1024
TOLLKEY_DATABASE_POOL=-1 -> must be a whole number
TOLLKEY_DATABASE_POOL=canary -> must be a whole number from 1 to 1000
TOLLKEY_APPLICATION_KEY_LIMIT=0 -> must be a whole number
TOLLKEY_APPLICATION_KEY_LIMIT=canary -> must be a whole number
TOLLKEY_CACHE_BYTES=4194303 -> must be a whole number from 4194304 to
TOLLKEY_CACHE_BYTES=256MiB -> must be a whole number
TOLLKEY_CACHE_BYTES=canary -> must be a whole number
TOLLKEY_CACHED_KEYS=0 -> must be a whole number
TOLLKEY_CACHED_KEYS=canary -> must be a whole number
TOLLKEY_REMEMBERED_KEYS=0 -> must be a whole number
TOLLKEY_REMEMBERED_KEYS=canary -> must be a whole number
TOLLKEY_MIGRATE=1 -> must be true or false
TOLLKEY_MIGRATE=canary -> must be true or false
TOLLKEY_TRUSTED_PROXIES=10.0.0.1 -> entry 1 must be a CIDR with host bits of zero
TOLLKEY_TRUSTED_PROXIES=127.0.0.0/8,10.0.0.1/8 -> entry 2 must be a CIDR with host bits of zero
TOLLKEY_TRUSTED_PROXIES=10.0.0.0/8, -> must not have an empty entry
TOLLKEY_TRUSTED_PROXIES=10.0.0.0/8,canary -> entry 2 must be a CIDR
TOLLKEY_MERCHANT_HEADER=x merchant -> must be the name of a header
TOLLKEY_MERCHANT_HEADER=Authorization -> must not be a header that already has a meaning
TOLLKEY_MERCHANT_HEADER=X-Auth-Key-Id -> must not be a header that already has a meaning
TOLLKEY_MERCHANT_HEADER=x canary -> must be the name of a header
TOLLKEY_CREDENTIAL_HEADERS=cookie -> must list one or more of authorization, x-api-key, x-commerce-api-key
TOLLKEY_CREDENTIAL_HEADERS=x-api-key, -> must not have an empty entry
TOLLKEY_CREDENTIAL_HEADERS=x-api-key,x-api-keys -> must list one or more of authorization
TOLLKEY_CREDENTIAL_HEADERS=canary -> must list one or more of authorization, x-api-key, x-commerce-api-key
TOLLKEY_ROUTE_BASE=api -> must begin with a slash, such as /api
TOLLKEY_ROUTE_BASE=/api// -> must be a path such as /api
TOLLKEY_ROUTE_BASE=/a/../b -> must be a path such as /api
TOLLKEY_ROUTE_BASE=canary -> must begin with a slash
TOLLKEY_LOG=info,= -> directive 2: unknown level
TOLLKEY_LOG=infoo -> unknown level; the levels are off, error, warn, info, debug, trace
TOLLKEY_LOG=5 -> unknown level
TOLLKEY_LOG=info,tollkey_server -> directive 2: unknown level
TOLLKEY_LOG=tollkey_server=verbose -> unknown level
TOLLKEY_LOG=tollkey_server= -> unknown level
TOLLKEY_LOG=info,[span]=loud -> directive 2: unknown level
TOLLKEY_LOG=info,[span{}=debug -> directive 2: must be LEVEL, TARGET=LEVEL or
TOLLKEY_LOG=info, -> must not have an empty entry
TOLLKEY_LOG=canary -> unknown level; the levels are off, error, warn, info, debug, trace
TOLLKEY_LOG_FORMAT=xml -> must be pretty or json
TOLLKEY_LOG_FORMAT=canary -> must be pretty or json
TOLLKEY_DATABASE_WAIT_SECONDS=-1 -> must be a whole number from 0 to 3600
TOLLKEY_DATABASE_WAIT_SECONDS=3601 -> must be a whole number from 0 to 3600
TOLLKEY_DATABASE_WAIT_SECONDS=canary -> must be a whole number from 0 to 3600
DATABASE_URL=postgres://me:a@b@db/keys -> write an @ in the user name or the password as %40
DATABASE_URL=host=db user=me -> must be a URL
DATABASE_URL=mysql://localhost -> must begin with sqlite:// or postgres://
DATABASE_URL=tollkey.db -> must begin with sqlite:// or postgres://
DATABASE_URL=sqlite:// -> must name a file
DATABASE_URL=sqlite://a.db?mode=ro -> must name a file
DATABASE_URL=canary://x -> must begin with sqlite:// or postgres://
TOLLKEY_SCOPES=Refunds -> entry 1 must have 1 to 64 characters
TOLLKEY_SCOPES=refunds:read,links:read -> entry 2 is a built-in scope or repeated
TOLLKEY_SCOPES=refunds:read,refunds:read -> entry 2 is a built-in scope or repeated
TOLLKEY_SCOPES=Canary -> entry 1 must have 1 to 64 characters
TOLLKEY_COMMERCE_SCOPES=refunds:read -> entry 1 must also be in TOLLKEY_SCOPES
TOLLKEY_COMMERCE_SCOPES=canary -> entry 1 must also be in TOLLKEY_SCOPES
TOLLKEY_JWT_JWKS_URL=http://issuer.example/jwks -> must be https
TOLLKEY_JWT_JWKS_URL=https://u:p@issuer.example/jwks -> must not have a user name or password
TOLLKEY_JWT_JWKS_URL=issuer.example -> must be a URL
TOLLKEY_JWT_JWKS_URL=canary -> must be a URL
DATABASE_URL_FILE=canary -> cannot read the file that it names
TOLLKEY_DRAIN_SECONDS=canary -> must be a whole number from 0 to 300
TOLLKEY_MAX_CONNECTIONS=canary -> must be a whole number from 1 to 1000000
TOLLKEY_JWT_HS256_SECRET=canary -> must have at least 32 bytes
TOLLKEY_JWT_HS256_SECRET_FILE=canary -> cannot read the file that it names
TOLLKEY_JWT_PUBLIC_KEY_FILE=\x20 -> must not be empty
TOLLKEY_JWT_ISSUER=\x20canary -> must not begin or end with white space
TOLLKEY_JWT_AUDIENCE='canary' -> must not begin or end with a quotation mark
TOLLKEY_JWT_ROLES_CLAIM=/canary/~2 -> must be a JSON pointer
TOLLKEY_SEALING_SECRET=canary -> must have at least 32 bytes
TOLLKEY_SEALING_SECRET_FILE=canary -> cannot read the file that it names
TOLLKEY_DASHBOARD_TOKEN_SIGN_IN=canary -> must be true or false
TOLLKEY_PUBLIC_URL=canary -> must be a URL
TOLLKEY_PUBLIC_URL=keys.example.com -> must be a URL
TOLLKEY_PUBLIC_URL=http://keys.example.com -> must be https
TOLLKEY_PUBLIC_URL=https://keys.example.com/?x -> must not have a query or fragment
TOLLKEY_PUBLIC_URL=https://keys.example.com/keys#x -> must not have a query or fragment
TOLLKEY_PUBLIC_URL=https://keys.example.com/a/../keys -> must have a path of at most
TOLLKEY_PUBLIC_URL=https://keys.example.com/a%2e -> must have a path of at most
TOLLKEY_PUBLIC_URL=https://keys.example.com//keys -> must have a path of at most
TOLLKEY_PUBLIC_URL=https://keys.example.com\\keys -> must have a path of at most
TOLLKEY_PUBLIC_URL=https:///keys.example.com -> must be written in full
TOLLKEY_PUBLIC_URL=https:keys.example.com/keys -> must be written in full
TOLLKEY_PUBLIC_URL=https://keys.example.com/api -> must not have a path that the server uses itself
TOLLKEY_OIDC_ISSUER=http://canary.example -> must be https
TOLLKEY_OIDC_ISSUER=id.example -> must be a URL
TOLLKEY_OIDC_ISSUER=http://id.example -> must be https
TOLLKEY_OIDC_ISSUER=https://u:p@id.example -> must not have a user name or password
TOLLKEY_OIDC_ISSUER=https://id.example/?realm=x -> must not have a query
TOLLKEY_OIDC_ISSUER=https://id.example/#x -> must not have a query
TOLLKEY_OIDC_CLIENT_ID=\"canary\" -> must not begin or end with a quotation mark
TOLLKEY_OIDC_CLIENT_SECRET=canary\u{feff} -> must not have a byte order mark
TOLLKEY_OIDC_CLIENT_SECRET_FILE=canary -> cannot read the file that it names
TOLLKEY_OIDC_SCOPES=profile,can ary -> entry 2 is not a scope
TOLLKEY_OIDC_SCOPES=profile email -> entry 1 is not a scope
TOLLKEY_OIDC_SCOPES=profile, -> must not have an empty entry
TOLLKEY_OIDC_ACCOUNT_CLAIM=canary\x20 -> must not begin or end with white space
TOLLKEY_OIDC_ROLES_CLAIM=/canary~ -> must be a JSON pointer
TOLLKEY_ACCOUNT_KEY_LIMIT=canary -> must be a whole number
TOLLKEY_KEY_DEPTH_LIMIT=canary -> must be a whole number from 0 to 8
TOLLKEY_CONFIG=canary -> cannot read the file that it names
";

#[test]
fn invalid_value_is_rejected_by_a_rule_that_hides_it() {
    let rows = INVALID.lines().map(|row| {
        let (setting, rule) = row.split_once(" -> ").unwrap();
        let (name, value) = setting.split_once('=').unwrap();
        (name, value, rule)
    });
    let line_break = (
        "TOLLKEY_JWT_ACCOUNT_CLAIM",
        "canary\n",
        "must not begin or end with white space",
    );
    let mut listed = HashSet::new();
    for (name, value, rule) in rows.chain([line_break]) {
        let start = format!("{name} (environment): ");
        let rejected = environment(&with_others(name, value));
        assert_rejected(rejected, &start, rule);
        // Only these rows show whether an error hides the value. Every path of a public key is valid until it is read.
        let is_canary = value.to_lowercase().replace(' ', "").contains("canary");
        if is_canary || name == "TOLLKEY_JWT_PUBLIC_KEY_FILE" {
            listed.insert(name);
        }
    }
    for Setting { env, .. } in SETTINGS.iter() {
        assert!(
            listed.contains(env.as_str()),
            "{env} has no row with a canary"
        );
    }
    let long = "canary".repeat(20);
    assert!(environment(&with_others("TOLLKEY_JWT_ISSUER", &long)).is_ok());
}

/// Returns a variable, and those that other variables require.
fn with_others<'a>(name: &'a str, value: &'a str) -> Vec<(&'a str, &'a str)> {
    let token_claims = [("TOLLKEY_JWT_ISSUER", "i"), ("TOLLKEY_JWT_AUDIENCE", "a")];
    let others = PROVIDER.into_iter().chain(token_claims);
    let others = others.filter(|(other, _)| *other != name);
    others.chain([(name, value)]).collect()
}

#[test]
fn grpc_listener_is_rejected_in_a_build_without_grpc() {
    let env =
        |name: &str| (name == "TOLLKEY_GRPC_LISTEN").then(|| OsString::from("127.0.0.1:9000"));
    let file = Path::new("no such file");
    let sources = Sources::read(&options(&[]).unwrap(), &env, file).unwrap();
    let error = check_grpc(&sources, false).unwrap_err().to_string();
    let rule = "needs gRPC, which this build does not have; build the server with `--features grpc`, or remove the setting";
    assert_eq!(error, format!("TOLLKEY_GRPC_LISTEN (environment): {rule}"));
    assert!(check_grpc(&sources, true).is_ok());
}

#[test]
fn former_name_of_a_setting_is_accepted_and_reported() {
    let former = [("TOLLKEY_REMEMBERED_KEYS", "7")];
    let renamed = "TOLLKEY_REMEMBERED_KEYS was renamed to TOLLKEY_CACHED_KEYS; the former name is accepted in this release only";
    for settings in [
        flags(&["--remembered-keys", "7"]),
        environment(&former),
        file("remembered_keys = 7"),
    ] {
        let settings = settings.unwrap();
        assert_eq!(settings.cache.keys, 7);
        assert_eq!(warnings(&settings), [renamed]);
    }
    let both = environment(&[former[0], ("TOLLKEY_CACHED_KEYS", "7")]);
    let rule = "TOLLKEY_CACHED_KEYS (environment) and TOLLKEY_REMEMBERED_KEYS";
    assert_rejected(both, rule, "");
    let help = help();
    assert!(help.contains("--cached-keys"), "{help}");
    assert!(!help.contains("--remembered-keys"), "{help}");
}

fn help() -> String {
    let mut command = Options::add_to(Command::new("tollkey"));
    command.render_long_help().to_string()
}

#[test]
fn valid_values_are_accepted() {
    let server = |name, value| environment(&[(name, value)]).unwrap().server;
    let listen = server("TOLLKEY_LISTEN", "localhost:9000").listen;
    assert_eq!(listen.first().to_string(), "127.0.0.1:9000");
    let proxies = |value| server("TOLLKEY_TRUSTED_PROXIES", value).trusted_proxies;
    assert_eq!(proxies("none"), None);
    let networks = proxies("10.0.0.0/8, fd00::/8").unwrap();
    assert_eq!(networks.networks().len(), 2);
    let file = |path| DatabaseKind::SqliteFile(Path::new(path));
    for (url, kind) in [
        ("sqlite://:memory:", DatabaseKind::SqliteMemory),
        ("sqlite://data/keys.db", file("data/keys.db")),
        ("sqlite:///var/lib/keys.db", file("/var/lib/keys.db")),
        ("postgres://localhost/keys", DatabaseKind::Postgres),
        (
            "postgresql:///keys?host=/run/postgresql",
            DatabaseKind::Postgres,
        ),
    ] {
        let settings = environment(&[("DATABASE_URL", url)]).unwrap();
        assert_eq!(settings.database.kind(), kind);
    }
}

#[test]
fn several_listeners_can_be_set() {
    let text = "127.0.0.1:8080, unix:/run/tollkey/tollkey.sock";
    let array = "listen = [\"127.0.0.1:8080\", \"unix:/run/tollkey/tollkey.sock\"]";
    for settings in [
        flags(&["--listen", text]),
        environment(&[("TOLLKEY_LISTEN", text)]),
        file(array),
        file(&format!("listen = \"{text}\"")),
    ] {
        let listen = settings.unwrap().server.listen;
        let shown: Vec<_> = listen.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["127.0.0.1:8080", "unix:/run/tollkey/tollkey.sock"]);
    }
    let repeated = [("TOLLKEY_LISTEN", "[::1]:1,[::1]:1")];
    let rule = "entry 2 repeats entry 1";
    assert_rejected(
        environment(&repeated),
        "TOLLKEY_LISTEN (environment): ",
        rule,
    );
    let relative = flags(&["--listen", "unix:canary.sock"]);
    assert_rejected(
        relative,
        "TOLLKEY_LISTEN (flag --listen): ",
        "absolute path",
    );
}

#[test]
fn other_listeners_are_tcp_only() {
    for name in ["TOLLKEY_METRICS_LISTEN", "TOLLKEY_GRPC_LISTEN"] {
        let unix = environment(&[(name, "unix:/run/canary.sock")]);
        let rule = "only TOLLKEY_LISTEN can name a Unix socket";
        assert_rejected(unix, name, rule);
    }
}

#[test]
fn mode_of_unix_sockets_is_octal_and_lets_the_owner_connect() {
    const UNIX: (&str, &str) = ("TOLLKEY_LISTEN", "unix:/run/tollkey.sock");
    let mode = |text| environment(&[UNIX, ("TOLLKEY_SOCKET_MODE", text)]);
    assert_eq!(environment(&[UNIX]).unwrap().server.socket_mode, 0o660);
    for (text, expected) in [("0600", 0o600), ("660", 0o660), ("0777", 0o777)] {
        assert_eq!(mode(text).unwrap().server.socket_mode, expected, "{text}");
    }
    for text in [
        "66",
        "066",
        "0o660",
        "1660",
        "4660",
        "00660",
        "668",
        "rw-rw----",
        "0060",
        "0400",
        "+66",
    ] {
        let rule = "must be three octal digits after an optional 0";
        assert_rejected(mode(text), "TOLLKEY_SOCKET_MODE (environment): ", rule);
    }
}

#[test]
fn group_of_unix_sockets_is_a_name_or_a_number() {
    const UNIX: (&str, &str) = ("TOLLKEY_LISTEN", "unix:/run/tollkey.sock");
    let group = |text| environment(&[UNIX, ("TOLLKEY_SOCKET_GROUP", text)]);
    let name = |text: &str| SocketGroup::Name(text.to_owned());
    for (text, expected) in [
        ("www-data", name("www-data")),
        ("0", SocketGroup::Id(0)),
        ("4294967294", SocketGroup::Id(u32::MAX - 1)),
        ("33x", name("33x")),
    ] {
        let group = group(text).unwrap().server.socket_group;
        assert_eq!(group, Some(expected), "{text}");
    }
    assert_eq!(environment(&[UNIX]).unwrap().server.socket_group, None);
    for text in ["4294967295", "99999999999", " www-data", "'www-data'"] {
        assert_rejected(group(text), "TOLLKEY_SOCKET_GROUP (environment): ", "must");
    }
}

#[test]
fn setting_of_unix_sockets_that_is_probably_a_mistake_is_reported() {
    let unix = ("TOLLKEY_LISTEN", "[::1]:8080,unix:/run/tollkey.sock");
    let no_effect =
        |name: &str| format!("{name} has no effect, because TOLLKEY_LISTEN names no Unix socket");
    let (mode, group) = ("TOLLKEY_SOCKET_MODE", "TOLLKEY_SOCKET_GROUP");
    for (variables, expected) in [
        (vec![(mode, "0600")], vec![no_effect(mode)]),
        (vec![(group, "www-data")], vec![no_effect(group)]),
        (vec![unix, (mode, "0664"), (group, "www-data")], vec![]),
    ] {
        let settings = environment(&variables).unwrap();
        assert_eq!(warnings(&settings), expected, "{variables:?}");
    }
    let open = warnings(&environment(&[unix, (mode, "0666")]).unwrap());
    let [open] = &open[..] else {
        panic!("one warning: {open:?}");
    };
    assert!(
        open.starts_with("TOLLKEY_SOCKET_MODE: every user"),
        "{open}"
    );
}

#[test]
fn secret_can_be_read_from_a_file() {
    for line_break in ["", "\n", "\r\n"] {
        let (_directory, path) = secret_file(&format!("{}{line_break}", canary()));
        let settings = environment(&[("TOLLKEY_JWT_HS256_SECRET_FILE", &path)]).unwrap();
        let source = settings.tokens.source;
        assert!(matches!(source, TokenSource::Hs256(secret) if secret.expose() == canary()));
    }
    let (_directory, path) = secret_file("sqlite://:memory:\n");
    let by_flag = flags(&["--database-url-file", &path]).unwrap();
    let by_file = file(&format!("database_url_file = '{path}'")).unwrap();
    for settings in [by_flag, by_file] {
        assert_eq!(settings.database.kind(), DatabaseKind::SqliteMemory);
    }
}

#[test]
fn secret_and_its_file_exclude_each_other() {
    let secret = canary();
    let (_directory, path) = secret_file(&secret);
    for (name, value) in [
        ("TOLLKEY_JWT_HS256_SECRET", secret.as_str()),
        ("DATABASE_URL", "sqlite://:memory:"),
    ] {
        let file = format!("{name}_FILE");
        let error = environment(&[(name, value), (&file, &path)]).unwrap_err();
        let both = format!("{name} (environment) and {file} (environment)");
        assert_eq!(error, format!("{both} exclude each other; set one of them"));
    }
    let flag = ["--database-url", "sqlite://a.db"];
    let both = resolve(&flag, &[("DATABASE_URL_FILE", &path)], None);
    let rule = "(flag --database-url) and DATABASE_URL_FILE (environment) exclude";
    assert_rejected(both, "", rule);
}

#[test]
fn secret_file_without_a_secret_is_rejected() {
    let secret_in = |path: &str| environment(&[("TOLLKEY_JWT_HS256_SECRET_FILE", path)]);
    for text in ["", "\n", " \n"] {
        let (_directory, path) = secret_file(text);
        assert_rejected(secret_in(&path), "", "is empty");
    }
    // The secret itself is in the variable that should have the path of its file.
    let rule = "DATABASE_URL_FILE (environment): cannot read the file that it names: ";
    assert_rejected(environment(&[("DATABASE_URL_FILE", "canary")]), rule, "");
    let (_directory, path) = secret_file(&"x".repeat(70_000));
    let large = environment(&[("DATABASE_URL_FILE", &path)]);
    assert_rejected(large, "", "is larger than");
    let utf16: Vec<u8> = "canary".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(&path, [&[0xff, 0xfe], utf16.as_slice()].concat()).unwrap();
    assert_rejected(secret_in(&path), "", "it is not UTF-8");
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
    let url = "postgres://tollkey:canary@db.example/keys".to_owned();
    let secrets = [
        ("DATABASE_URL", url),
        ("TOLLKEY_JWT_HS256_SECRET", canary()),
        ("TOLLKEY_SEALING_SECRET", canary()),
        ("TOLLKEY_OIDC_CLIENT_SECRET", canary()),
    ];
    let declared = SETTINGS.iter().filter(|setting| setting.is_secret);
    assert_eq!(secrets.len(), declared.count());
    for (name, secret) in secrets {
        let file_name = format!("{name}_FILE");
        let field = name.trim_start_matches("TOLLKEY_").to_lowercase();
        for (prefix, suffix, rule) in STRAY {
            let text = format!("{prefix}{secret}{suffix}");
            let (_directory, path) = secret_file(&format!("{text}\n"));
            let toml = format!("{field} = {}", serde_json::json!(text));
            let variable = environment(&with_others(name, &text));
            let own_file = environment(&with_others(&file_name, &path));
            let file = resolve(&[], &PROVIDER, Some(&toml));
            for (place, result) in [
                ("environment", variable),
                (path.as_str(), own_file),
                ("tollkey.toml", file),
            ] {
                let error = result.err();
                let error =
                    error.unwrap_or_else(|| panic!("{name} {text:?} from {place} is accepted"));
                assert!(error.starts_with(&format!("{name} (")), "{text:?}: {error}");
                assert!(error.contains(place), "{text:?}: {error}");
                assert_rejected(Err(error), "", rule);
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
            let result = environment(&with_others(&file_name, &path));
            assert_eq!(result.is_ok(), is_valid, "{name} {suffix:?}");
        }
    }
}

#[test]
fn database_url_flag_follows_the_rules_of_secrets() {
    let result = flags(&["--database-url", "sqlite://canary.db "]);
    let rule = "DATABASE_URL (flag --database-url): must not begin or end with white space";
    assert_rejected(result, rule, "");
}

#[test]
fn log_directives_are_accepted() {
    let spans = "info,tollkey_server[request]=trace,[span{field=value}]=debug,tollkey_store[query]";
    for (text, filter) in [
        ("info", "info"),
        ("WARN", "WARN"),
        ("off", "off"),
        ("info,tollkey_server=debug", "info,tollkey_server=debug"),
        ("warn, tollkey::http=Off", "warn,tollkey::http=Off"),
        (spans, spans),
    ] {
        let settings = environment(&[("TOLLKEY_LOG", text)]).unwrap();
        assert_eq!(settings.log.filter, filter);
    }
}

#[test]
fn dashboard_token_sign_in_is_optional() {
    assert_eq!(environment(&[]).unwrap().dashboard_token_sign_in, None);
    for (text, value) in [("true", true), ("false", false)] {
        let settings = environment(&[("TOLLKEY_DASHBOARD_TOKEN_SIGN_IN", text)]).unwrap();
        assert_eq!(settings.dashboard_token_sign_in, Some(value));
    }
}

#[test]
fn secret_that_every_user_can_read_is_a_warning() {
    let chmod = |path: &str, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
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
        let expected = format!(
            "TOLLKEY_JWT_HS256_SECRET: every user of this machine can read {path} (mode {mode:o}); use chmod 600"
        );
        let expected = if warns { vec![expected] } else { Vec::new() };
        assert_eq!(warnings(&settings), expected, "{mode:o}");

        // A configuration file is a warning only if it contains a secret.
        let own = format!("jwt_hs256_secret = '{secret}'");
        for (text, is_secret) in [
            (own.as_str(), true),
            (
                "database_url = 'postgres://me:canary@db.example/keys'",
                true,
            ),
            (
                "database_url = 'postgres://me@db.example/keys'\nlog = 'warn'",
                false,
            ),
        ] {
            let (_directory, path) = secret_file(text);
            chmod(&path, mode);
            let settings = environment(&[("TOLLKEY_CONFIG", &path)]).unwrap();
            let count = usize::from(warns && is_secret);
            assert_eq!(warnings(&settings).len(), count, "{mode:o} {text}");
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
        let settings = environment(&with_others(name, &weak)).unwrap();
        let expected = format!(
            "{name} is one repeated character and can be guessed; create one with `openssl rand -hex 32`"
        );
        assert_eq!(warnings(&settings), [expected]);
    }
}

#[test]
fn public_key_on_one_line_is_a_warning() {
    for (text, expected) in [
        ("-----BEGIN PUBLIC KEY-----\\nEXAMPLE\\n", 1),
        ("-----BEGIN PUBLIC KEY-----\nEXAMPLE\n", 0),
    ] {
        let (_directory, path) = secret_file(text);
        let variables = with_others("TOLLKEY_JWT_PUBLIC_KEY_FILE", &path);
        let warnings = warnings(&environment(&variables).unwrap());
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
    assert_eq!(settings.effective.len(), SETTINGS.len());
    let workers = settings.server.workers().to_string();
    for (name, value, from) in [
        ("TOLLKEY_LISTEN", Some("127.0.0.1:1"), "flag --listen"),
        ("TOLLKEY_LOG", Some("warn"), "environment"),
        ("TOLLKEY_MERCHANT_HEADER", Some("x-merchant-id"), "default"),
        ("TOLLKEY_METRICS_LISTEN", None, "default"),
        ("TOLLKEY_JWT_ROLES_CLAIM", Some("roles"), "default"),
        ("TOLLKEY_WORKERS", Some(&workers), "default"),
        (
            "DATABASE_URL",
            Some("PostgreSQL database keys at db.example:5432"),
            "environment",
        ),
        ("TOLLKEY_JWT_HS256_SECRET", Some("(hidden)"), &path),
        ("TOLLKEY_JWT_HS256_SECRET_FILE", Some(&path), "environment"),
    ] {
        let expected = (value.map(str::to_owned), from.to_owned());
        assert_eq!(effective(&settings, name), expected, "{name}");
    }
    let (value, from) = effective(&settings, "TOLLKEY_SEALING_SECRET");
    assert_eq!(value, some("(hidden)"));
    assert!(from.ends_with("tollkey.toml"), "{from}");
    let (_, from) = effective(&settings, "TOLLKEY_LOG_FORMAT");
    assert!(from.ends_with("tollkey.toml"), "{from}");
    assert!(!format!("{:?}", settings.effective).contains("canary"));
}

#[test]
fn effective_value_is_the_one_in_use() {
    let default = environment(&[]).unwrap();
    let (connections, from) = effective(&default, "TOLLKEY_MAX_CONNECTIONS");
    let connections: usize = connections.unwrap().parse().unwrap();
    assert!((16..=10_000).contains(&connections), "{connections}");
    assert_eq!(from, "default");
    let set = environment(&[
        (
            "TOLLKEY_JWT_HS256_SECRET",
            "f3a1c27b9d04e86512fa77c0b9d3e158EXAMPLE",
        ),
        ("TOLLKEY_REMEMBERED_KEYS", "5"),
        ("TOLLKEY_MAX_CONNECTIONS", "100"),
    ])
    .unwrap();
    for (settings, name, value, from) in [
        (
            &default,
            "TOLLKEY_DASHBOARD_TOKEN_SIGN_IN",
            "true",
            "default",
        ),
        (&default, "TOLLKEY_CACHED_KEYS", "1000000", "default"),
        (&set, "TOLLKEY_DASHBOARD_TOKEN_SIGN_IN", "false", "default"),
        (&set, "TOLLKEY_CACHED_KEYS", "5", "environment"),
        (&set, "TOLLKEY_MAX_CONNECTIONS", "100", "environment"),
    ] {
        assert_eq!(effective(settings, name), (some(value), from.to_owned()));
    }
}

#[test]
fn errors_and_debug_output_hide_secrets() {
    let secret = canary();
    let short = &secret[..31];
    let rule = "must have at least 32 bytes; create one with";
    let in_variable = environment(&[("TOLLKEY_JWT_HS256_SECRET", short)]);
    let start = "TOLLKEY_JWT_HS256_SECRET (environment): must have at least 32 bytes";
    assert_rejected(in_variable, start, rule);
    let (_directory, path) = secret_file(short);
    let in_file = environment(&[("TOLLKEY_JWT_HS256_SECRET_FILE", &path)]);
    assert_rejected(in_file, "", rule);
    for url in ["mysql://u:canary@h/d", "sqlite://canary?x", "canary"] {
        assert_rejected(environment(&[("DATABASE_URL", url)]), "DATABASE_URL", "");
    }

    let url = "postgres://u:canary@localhost/d";
    let options = options(&["--database-url", url]).unwrap();
    assert_eq!(format!("{options:?}"), "{\"database-url\"}");
    let variables = [("DATABASE_URL", url), ("TOLLKEY_JWT_HS256_SECRET", &secret)];
    let settings = environment(&variables).unwrap();
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
        let rule = "must not have a password on the command line";
        assert_rejected(flags(&["--database-url", url]), "", rule);
        assert!(environment(&[("DATABASE_URL", url)]).is_ok());
    }
    for url in ["postgres://me@db.example:5432/tollkey", "sqlite://keys.db"] {
        assert!(flags(&["--database-url", url]).is_ok(), "{url}");
    }
}

#[test]
fn token_secret_has_no_flag() {
    let error = options(&["--jwt-hs256-secret", "x"]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnknownArgument);
}

#[test]
fn key_sources_exclude_each_other() {
    let (_directory, path) = secret_file(&canary());
    let file = [
        ("TOLLKEY_JWT_HS256_SECRET_FILE", path.as_str()),
        ("TOLLKEY_JWT_JWKS_URL", "https://issuer.example/jwks"),
    ];
    let rule = "TOLLKEY_JWT_HS256_SECRET_FILE (environment) and TOLLKEY_JWT_JWKS_URL";
    assert_rejected(environment(&file), rule, "");
    let error = environment(&[
        ("TOLLKEY_JWT_HS256_SECRET", &canary()),
        ("TOLLKEY_JWT_JWKS_URL", "https://issuer.example/jwks"),
    ])
    .unwrap_err();
    assert_eq!(
        error,
        "TOLLKEY_JWT_HS256_SECRET (environment) and TOLLKEY_JWT_JWKS_URL (environment) exclude each other; set one of them"
    );
    let flag = ["--jwt-public-key-file", "key.pem"];
    let both = resolve(&flag, &[], Some("jwt_jwks_url = 'https://issuer.example'"));
    let rule = "TOLLKEY_JWT_PUBLIC_KEY_FILE (flag --jwt-public-key-file) and";
    assert_rejected(both, rule, "");
}

#[test]
fn public_key_requires_issuer_and_audience_and_gives_no_role() {
    let (issuer, audience) = (("TOLLKEY_JWT_ISSUER", "i"), ("TOLLKEY_JWT_AUDIENCE", "a"));
    for source in [
        ("TOLLKEY_JWT_PUBLIC_KEY_FILE", "key.pem"),
        ("TOLLKEY_JWT_JWKS_URL", "https://issuer.example/jwks"),
        ("TOLLKEY_JWT_JWKS_URL", "http://127.0.0.1:8081/jwks"),
        ("TOLLKEY_JWT_JWKS_URL", "http://[::1]:8081/jwks"),
        ("TOLLKEY_JWT_JWKS_URL", "http://localhost:8081/jwks"),
    ] {
        for (set, missing) in [(audience, issuer.0), (issuer, audience.0)] {
            let error = environment(&[source, set]).unwrap_err();
            let because = format!("because {} is (environment)", source.0);
            assert_eq!(error, format!("{missing} must be set, {because}"));
        }
        let TokenSettings {
            source: keys,
            claims,
        } = environment(&[source, issuer, audience]).unwrap().tokens;
        assert!(matches!(
            keys,
            TokenSource::PublicKeyFile(_) | TokenSource::Jwks(_)
        ));
        assert_eq!(claims.roles_claim, None);
        let roles = ("TOLLKEY_JWT_ROLES_CLAIM", "groups");
        let settings = environment(&[source, issuer, audience, roles]).unwrap();
        assert_eq!(settings.tokens.claims.roles_claim, some("groups"));
    }
}

#[test]
fn public_key_can_be_read_from_a_pipe() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    // Ed25519, from RFC 8410, section 10.1.
    let key = "MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=";
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n");
    writer.write_all(pem.as_bytes()).unwrap();
    drop(writer);
    let path = format!("/dev/fd/{}", reader.as_raw_fd());
    let variables = with_others("TOLLKEY_JWT_PUBLIC_KEY_FILE", &path);
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
    let public_url = environment(&PROVIDER[2..]).unwrap();
    assert!(
        public_url.oidc.is_none(),
        "the public URL does not require a provider"
    );
    let oidc = environment(&PROVIDER).unwrap().oidc.unwrap();
    assert_eq!(oidc.issuer, "https://id.example/realms/shop");
    assert_eq!(oidc.client_id, "tollkey");
    assert_eq!(oidc.public_url, "https://keys.example.com");
    assert!(oidc.client_secret.is_none() && oidc.scopes.is_empty());
    assert_eq!(oidc.account_claim, "account_id");
    assert_eq!(oidc.roles_claim, None);

    for missing in ["TOLLKEY_OIDC_CLIENT_ID", "TOLLKEY_PUBLIC_URL"] {
        let mut rest = PROVIDER.to_vec();
        rest.retain(|(name, _)| *name != missing);
        let error = environment(&rest).unwrap_err();
        let because = "because TOLLKEY_OIDC_ISSUER is (environment)";
        assert_eq!(error, format!("{missing} must be set, {because}"));
    }
    let secret = canary();
    for (name, value) in [
        ("TOLLKEY_OIDC_CLIENT_ID", "tollkey"),
        ("TOLLKEY_OIDC_CLIENT_SECRET", &secret),
        ("TOLLKEY_OIDC_SCOPES", "profile"),
        ("TOLLKEY_OIDC_ACCOUNT_CLAIM", "org"),
        ("TOLLKEY_OIDC_ROLES_CLAIM", "roles"),
    ] {
        let error = environment(&[(name, value)]).unwrap_err();
        let because = format!("because {name} is (environment)");
        assert_eq!(error, format!("TOLLKEY_OIDC_ISSUER must be set, {because}"));
    }
    let (_directory, path) = secret_file(&secret);
    let in_file = environment(&[("TOLLKEY_OIDC_CLIENT_SECRET_FILE", &path)]);
    let rule = "TOLLKEY_OIDC_ISSUER must be set, because TOLLKEY_OIDC_CLIENT_SECRET is (";
    assert_rejected(in_file, rule, "");
}

#[test]
fn all_provider_settings_are_read() {
    let secret = canary();
    let (_directory, path) = secret_file(&format!("{secret}\n"));
    let scopes = "profile, openid,https://id.example/api.read";
    let mut variables = PROVIDER.to_vec();
    variables.extend([
        ("TOLLKEY_OIDC_CLIENT_SECRET_FILE", path.as_str()),
        ("TOLLKEY_OIDC_SCOPES", scopes),
        ("TOLLKEY_OIDC_ACCOUNT_CLAIM", "org"),
        ("TOLLKEY_OIDC_ROLES_CLAIM", "https://id.example/roles"),
    ]);
    let settings = environment(&variables).unwrap();
    assert!(!format!("{settings:?}").contains("canary"));
    let oidc = settings.oidc.unwrap();
    assert_eq!(oidc.client_secret.unwrap().expose(), secret);
    assert_eq!(oidc.scopes, ["profile", "https://id.example/api.read"]);
    assert_eq!(oidc.account_claim, "org");
    assert_eq!(oidc.roles_claim, some("https://id.example/roles"));

    variables.push(("TOLLKEY_OIDC_CLIENT_SECRET", &secret));
    assert_rejected(environment(&variables), "", "exclude each other");
}

#[test]
fn issuer_and_public_url_can_have_a_port_and_a_path() {
    for (issuer, public, path) in [
        ("http://127.0.0.1:8081", "http://localhost:8080", ""),
        ("http://[::1]:8081/", "http://127.0.0.1:8080/", ""),
        ("https://id.example/", "https://keys.example.com:8443", ""),
        ("https://id.example/", "https://example.com/keys", "/keys"),
        (
            "https://id.example/",
            "https://example.com/a/keys/",
            "/a/keys",
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
    let help = help();
    assert!(help.contains(
        "Permissions of the Unix sockets of TOLLKEY_LISTEN, in octal. A process needs write permission to connect \
         [default: 0660] [env: TOLLKEY_SOCKET_MODE]"
    ));
}
