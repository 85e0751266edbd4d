//! Tests which URLs are accepted, which parameters are passed to libpq, and that no error quotes a URL.

use super::*;

fn parse(url: &str) -> Result<DatabaseUrl, BadUrl> {
    DatabaseUrl::parse(url)
}

fn resolve(url: &str) -> Result<Target, BadUrl> {
    parse(url)?.resolve(false, |_| None)
}

/// Returns the parameters for libpq, sorted, as `NAME=VALUE` with commas in between.
fn parameters(url: &str) -> String {
    let Location::Postgres(parameters) = parse(url).unwrap().location else {
        panic!("{url} is not a PostgreSQL URL")
    };
    let pairs = parameters.iter();
    let pairs: Vec<String> = pairs
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join(", ")
}

#[test]
fn sqlite_urls_name_a_file_or_memory() {
    for (url, path) in [
        ("sqlite://tollkey.db", "./tollkey.db"),
        ("sqlite://data/a b.db", "./data/a b.db"),
        ("sqlite:///var/lib/t.db", "/var/lib/t.db"),
        ("sqlite://file:x", "./file:x"),
    ] {
        assert_eq!(resolve(url), Ok(Target::File(path.into())));
    }
    assert_eq!(resolve("sqlite://:memory:"), Ok(Target::Memory));
    for url in [
        "sqlite://",
        "sqlite:///",
        "sqlite://data/",
        "sqlite://file:x?mode=memory",
    ] {
        assert_eq!(parse(url), Err(BadUrl::NoFile), "{url}");
    }
    for url in [
        "",
        "tollkey.db",
        "mysql://x",
        "sqlite:x",
        "postgres:x",
        "POSTGRES://x",
        "'postgres://x'",
    ] {
        assert_eq!(parse(url), Err(BadUrl::Scheme), "{url}");
    }
}

#[test]
fn postgres_urls_are_parsed_like_in_libpq() {
    for (url, expected) in [
        ("postgres://", ""),
        ("postgresql:///keys", "dbname=keys"),
        ("postgres://db.example", "host=db.example"),
        (
            "postgres://me@db.example:5433/keys",
            "dbname=keys, host=db.example, port=5433, user=me",
        ),
        (
            "postgres://me:a%40b%2Fc%3Ad%3Fe%23f%25g%20h@db/k",
            "dbname=k, host=db, password=a@b/c:d?e#f%g h, user=me",
        ),
        (
            "postgres://me:a:b#c'd\\e@db",
            "host=db, password=a:b#c'd\\e, user=me",
        ),
        ("postgres://me:@db", "host=db, user=me"),
        (
            "postgres://m%C3%A9@db/k%2Fl",
            "dbname=k/l, host=db, user=mé",
        ),
        ("postgres://[::1]:5432/k", "dbname=k, host=::1, port=5432"),
        (
            "postgres://[fe80::1%25eth0]/k",
            "dbname=k, host=fe80::1%eth0",
        ),
        ("postgres://one:1,two/k", "dbname=k, host=one,two, port=1,"),
        ("postgres://%2Fvar%2Frun/k", "dbname=k, host=/var/run"),
        (
            "postgres:///k?host=/var/run/postgresql&port=5433",
            "dbname=k, host=/var/run/postgresql, port=5433",
        ),
        (
            "postgres://me:p@localhost/k?host=/cloudsql/a:b:c",
            "dbname=k, host=/cloudsql/a:b:c, password=p, user=me",
        ),
        (
            "postgres://db/k?user=me@corp&pass%77ord=p",
            "dbname=k, host=db, password=p, user=me@corp",
        ),
        (
            "postgres://me@db?application_name=a@b",
            "application_name=a@b, host=db, user=me",
        ),
        (
            "postgres://db/k?ssl=true",
            "dbname=k, host=db, sslmode=require",
        ),
        (
            "postgres://db/k?hostaddr=192.0.2.7&sslmode=",
            "dbname=k, host=db, hostaddr=192.0.2.7",
        ),
    ] {
        assert_eq!(parameters(url), expected, "{url}");
    }
}

#[test]
fn malformed_urls_are_rejected_without_quoting_them() {
    let assert_rejected = |url: &str, rule: BadUrl| {
        let error = parse(url).unwrap_err();
        assert_eq!(error, rule, "{url}");
        let shown = error.to_string();
        assert!(
            !shown.contains("can") && !shown.contains("ary@"),
            "{url}: {shown}"
        );
    };
    for (rest, rule) in [
        ("me:canary%zz@db/keys", BadUrl::Escape),
        ("me:canary%@db/keys", BadUrl::Escape),
        ("me:canary%4@db/keys", BadUrl::Escape),
        ("me:canary%ff@db/keys", BadUrl::NotUtf8),
        ("me:canary%00@db/keys", BadUrl::WhiteSpace),
        ("me:can ary@db/keys", BadUrl::WhiteSpace),
        ("me:canary@db/keys\n", BadUrl::WhiteSpace),
        ("me:can@ary@db/keys", BadUrl::At),
        ("me:can@ary@db", BadUrl::At),
        ("me:can/ary@db/keys", BadUrl::Path),
        ("me:123/canary@db/keys", BadUrl::Path),
        ("me:123/canary@db", BadUrl::Path),
        ("me:p@can/ary@db/keys", BadUrl::Path),
        ("me:can?ary@db/keys", BadUrl::QuestionMark),
        ("me:can?ary=x@db/keys", BadUrl::QuestionMark),
        ("me@db:can#ary/keys", BadUrl::Port),
        ("me@db/keys#canary", BadUrl::Path),
        ("me@db/keys?sslmode=require#canary", BadUrl::Path),
        (":canary@db/keys", BadUrl::NoUser),
        ("@canary/keys", BadUrl::NoUser),
        (":@canary/keys", BadUrl::NoUser),
        ("me:canary/keys", BadUrl::Port),
        ("me:canary", BadUrl::Port),
        ("db:0/canary", BadUrl::Port),
        ("db:65536/canary", BadUrl::Port),
        ("one:1,two:canary/keys", BadUrl::Port),
        ("db/keys?port=canary", BadUrl::Port),
        ("me:p@can$ary/keys", BadUrl::Host),
        ("me:p@can%2Cary/keys", BadUrl::Host),
        ("me:p@[canary]/keys", BadUrl::Host),
        ("me:p@[::1]canary/keys", BadUrl::Host),
        ("me:p@[::1/canary", BadUrl::Host),
        ("me@::1/canary", BadUrl::Port),
        ("db/keys?canary", BadUrl::NoValue(1)),
        (
            "db/keys?sslmode=disable&canary=1",
            BadUrl::UnknownParameter(2),
        ),
        ("db/keys?replication=canary", BadUrl::UnknownParameter(1)),
        (
            "me:canary@db/keys?password=canary",
            BadUrl::Repeated("password"),
        ),
        ("canary@db/keys?user=canary", BadUrl::Repeated("user")),
        ("db/canary?dbname=canary", BadUrl::Repeated("dbname")),
        ("db/keys&password=canary", BadUrl::DatabaseName),
        ("db/keys;password=canary", BadUrl::DatabaseName),
        ("db/keys%3Fpassword=canary", BadUrl::DatabaseName),
        ("db/keys%26password%3Dcanary", BadUrl::DatabaseName),
        ("db/keys%20canary", BadUrl::DatabaseName),
        ("db/?dbname=password%3Dcanary", BadUrl::DatabaseName),
        (
            "db/?dbname=host%3Ddb%20password%3Dcanary",
            BadUrl::DatabaseName,
        ),
        ("db/keys?host=canary&host=canary", BadUrl::Repeated("host")),
        ("db/keys?target_session_attrs=any", BadUrl::Standby),
    ] {
        assert_rejected(&format!("postgres://{rest}"), rule);
    }
    for (url, rule) in [
        (
            "host=db user=me password=canary dbname=keys",
            BadUrl::Keywords,
        ),
        ("password=canary", BadUrl::Keywords),
        ("canary", BadUrl::Scheme),
        ("mysql://me:canary@db/keys", BadUrl::Scheme),
        ("sqlite://canary?key=canary", BadUrl::NoFile),
        ("sqlite://canary\n", BadUrl::WhiteSpace),
    ] {
        assert_rejected(url, rule);
    }
    for (parameter, name) in [
        ("sslmode=canary", "sslmode"),
        ("sslmode=Require", "sslmode"),
        ("ssl=canary", "ssl"),
        ("connect_timeout=canary", "connect_timeout"),
        ("keepalives_idle=-1", "keepalives_idle"),
        ("client_encoding=canary", "client_encoding"),
        ("target_session_attrs=canary", "target_session_attrs"),
        ("hostaddr=canary", "hostaddr"),
    ] {
        let error = parse(&format!("postgres://db/keys?{parameter}")).unwrap_err();
        assert!(
            matches!(&error, BadUrl::Value { name: named, .. } if *named == name),
            "{parameter}: {error:?}"
        );
        assert!(!error.to_string().contains("canary"), "{error}");
    }
    // All modes of libpq.
    for mode in [
        "disable",
        "allow",
        "prefer",
        "require",
        "verify-ca",
        "verify-full",
    ] {
        let url = format!("postgres://db/keys?sslmode={mode}");
        assert!(parse(&url).is_ok(), "{mode}");
    }
}

#[test]
fn passwords_are_detected_in_every_form() {
    for url in [
        "postgres://me:p@db/k",
        "postgres://me@db/k?password=p",
        "postgres://me@db/k?pass%77ord=p",
        "postgres://me@db/k?%70%61%73%73%77%6f%72%64=p",
        "postgres://me@db/k?sslkey=key.pem&sslpassword=p",
        "postgres://me@db/k?oauth_client_secret=p",
        "postgres://me@db/k?scram_client_key=p",
    ] {
        assert!(parse(url).unwrap().has_password(), "{url}");
    }
    for url in [
        "postgres://me@db/password",
        "postgres://me:@db/k?passfile=/p",
        "sqlite://password=x",
        "sqlite://:memory:",
    ] {
        assert!(!parse(url).unwrap().has_password(), "{url}");
    }
}

#[test]
fn remote_server_requires_tls_unless_sslmode_is_disable() {
    for url in [
        "postgres:///tollkey",
        "postgres://localhost/tollkey",
        "postgres://user:p%40ss@127.0.0.1:5432/tollkey",
        "postgresql://user@[::1]:5432/tollkey",
        "postgres://%2Fvar%2Frun%2Fpostgresql/tollkey",
        "postgres:///tollkey?host=/var/run/postgresql",
        "postgres://db.example/tollkey?sslmode=disable",
        "postgres://db.example/tollkey?host=localhost",
    ] {
        assert!(resolve(url).is_ok(), "{url}");
    }
    for url in [
        "postgres://db.example/tollkey",
        "postgres://db.example/tollkey?sslmode=prefer",
        "postgres://localhost,db.example/tollkey",
        "postgres://localhost/tollkey?host=db.example",
        "postgres://localhost/tollkey?hostaddr=192.0.2.1",
        "postgres://localhost@db.example/tollkey",
        "postgres://10.0.0.1",
        "postgres:///tollkey?service=remote",
        "postgres:///tollkey?host=/tmp,db.example",
    ] {
        assert_eq!(resolve(url), Err(BadUrl::NeedsTls), "{url}");
    }
    let elsewhere = |name: &str| (name == "PGHOST").then(|| "db.example".to_owned());
    let default = parse("postgres:///tollkey").unwrap();
    assert_eq!(default.resolve(false, elsewhere), Err(BadUrl::NeedsTls));
    assert_eq!(
        resolve("postgres://localhost/t?sslmode=verify-full"),
        Err(BadUrl::TlsDemanded)
    );
}

#[test]
fn conninfo_quotes_values_and_requires_the_primary() {
    let Ok(Target::Postgres(conninfo)) =
        resolve("postgres://me:it's%5C@localhost/t?connect_timeout=9")
    else {
        panic!("a PostgreSQL target")
    };
    for parameter in [
        r"password='it\'s\\'",
        "target_session_attrs='read-write'",
        "connect_timeout='9'",
        "tcp_user_timeout='3000'",
        "client_encoding='UTF8'",
    ] {
        assert!(conninfo.contains(parameter), "{parameter}: {conninfo}");
    }
    assert!(!conninfo.contains("connect_timeout='3'"), "{conninfo}");
}

#[test]
fn target_names_the_database_without_credentials() {
    for (url, target) in [
        (
            "postgres://me:canary@db.example/keys",
            "PostgreSQL database keys at db.example:5432",
        ),
        (
            "postgres://me:canary@one:1,two/keys?password=",
            "PostgreSQL database keys at one:1,two:5432",
        ),
        (
            "postgres://me:canary@[::1]:5433/keys",
            "PostgreSQL database keys at [::1]:5433",
        ),
        (
            "postgres:///keys?host=/run/pg&password=canary",
            "PostgreSQL database keys at /run/pg/.s.PGSQL.5432",
        ),
        (
            "sqlite:///var/lib/tollkey.db",
            "SQLite database /var/lib/tollkey.db",
        ),
        ("sqlite://:memory:", "SQLite database in memory"),
    ] {
        let parsed = parse(url).unwrap();
        assert_eq!(parsed.target(), target);
        assert_eq!(parsed.to_string(), target);
        assert_eq!(format!("{parsed:?}"), format!("DatabaseUrl({target:?})"));
        assert_eq!(parsed.expose(), url);
    }
    let relative = parse("sqlite://tollkey.db").unwrap().target();
    let directory = std::env::current_dir().unwrap();
    assert_eq!(
        relative,
        format!("SQLite database {}", directory.join("tollkey.db").display())
    );
}

/// Returns the parameters for libpq in a build with TLS. `env` has pairs of a variable and its value.
fn with_tls(url: &str, env: &[(&str, &str)]) -> Result<Parameters, BadUrl> {
    let Location::Postgres(parameters) = parse(url)?.location else {
        panic!("{url} is not a PostgreSQL URL")
    };
    tls::complete(&parameters, &|name: &str| {
        let found = env.iter().find(|(variable, _)| *variable == name);
        found.map(|(_, value)| (*value).to_owned())
    })
}

#[test]
fn tls_to_another_machine_is_verified_by_default() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path().display().to_string();
    let system = directory.path().join("system.crt").display().to_string();
    std::fs::write(&system, "").unwrap();
    let env = [("HOME", home.as_str()), ("SSL_CERT_FILE", &system)];
    let settings = |url: &str, more: &[(&'static str, &'static str)]| {
        let env: Vec<(&str, &str)> = env.iter().chain(more).copied().collect();
        let parameters = with_tls(url, &env).unwrap();
        let get = |name: &str| parameters.get(name).cloned().unwrap_or_default();
        (get("sslmode"), get("sslrootcert"))
    };
    let of = |mode: &str, cas: &str| (mode.to_owned(), cas.to_owned());
    for url in [
        "postgres://db.example/keys",
        "postgres://localhost,db.example/keys",
        "postgres://localhost/keys?hostaddr=192.0.2.1",
        "postgres://db.example/keys?sslmode=verify-full",
        "postgres://localhost/keys?sslmode=verify-full",
        "postgres://localhost/keys?sslrootcert=system",
        "postgres://db.example/keys?sslmode=verify-full&sslrootcert=system",
    ] {
        assert_eq!(settings(url, &[]), of("verify-full", &system), "{url}");
    }
    for (variables, expected) in [
        (&[("PGHOST", "db.example")][..], of("verify-full", &system)),
        (&[("PGSSLROOTCERT", "system")], of("verify-full", &system)),
        (&[("PGSSLMODE", "verify-full")], of("verify-full", &system)),
        (&[("PGSSLMODE", "require")], of("require", "")),
        (&[("PGSSLMODE", "")], of("", "")),
        (&[], of("", "")),
    ] {
        let url = "postgres:///keys";
        assert_eq!(settings(url, variables), expected, "{variables:?}");
    }
    for (url, expected) in [
        // On this machine, the mode is that of libpq.
        ("postgres://localhost/keys", of("", "")),
        (
            "postgres://db.example/keys?sslmode=disable",
            of("disable", ""),
        ),
        (
            "postgres://db.example/keys?sslmode=require",
            of("require", ""),
        ),
        // A service file may set both.
        ("postgres:///keys?service=remote", of("", "")),
        (
            "postgres:///keys?service=remote&sslmode=verify-full",
            of("verify-full", ""),
        ),
    ] {
        assert_eq!(settings(url, &[]), expected, "{url}");
    }

    // libpq's default file takes precedence over the system.
    let own = directory.path().join(".postgresql/root.crt");
    std::fs::create_dir(own.parent().unwrap()).unwrap();
    std::fs::write(&own, "").unwrap();
    for mode in ["verify-full", "verify-ca"] {
        let url = format!("postgres://db.example/keys?sslmode={mode}");
        assert_eq!(
            settings(&url, &[]),
            of(mode, &own.display().to_string()),
            "{mode}"
        );
    }
}

#[test]
fn cas_of_the_distribution_are_found() {
    let known = openssl_probe::probe().cert_file;
    let found = with_tls(
        "postgres://db.example/keys?sslrootcert=system",
        &[("HOME", "/nonexistent")],
    );
    match known {
        Some(file) => {
            let file = file.display().to_string();
            assert_eq!(found.unwrap().get("sslrootcert"), Some(&file));
        }
        None => assert_eq!(found, Err(BadUrl::NoSystemCas)),
    }
}

#[test]
fn unsafe_tls_parameters_are_rejected() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file").display().to_string();
    std::fs::write(&file, "").unwrap();
    for (query, error) in [
        (
            "sslrootcert=system&sslmode=verify-ca",
            BadUrl::WeakSystemCas,
        ),
        ("sslrootcert=system&sslmode=require", BadUrl::WeakSystemCas),
        ("sslrootcert=system&sslmode=disable", BadUrl::WeakSystemCas),
        ("sslmode=verify-ca", BadUrl::NoCa),
        (
            &format!("sslrootcert={file}&sslkey={file}"),
            BadUrl::NoClientCertificate,
        ),
    ] {
        let url = format!("postgres://db.example/keys?{query}");
        let found = with_tls(&url, &[("HOME", "/nonexistent")]);
        assert_eq!(found, Err(error), "{query}");
    }
    // The environment can have the certificate.
    let url = format!("postgres://db.example/keys?sslrootcert={file}&sslkey={file}");
    assert!(with_tls(&url, &[("PGSSLCERT", &file)]).is_ok());
    // The setting with the wrong path is named.
    let url = format!("postgres://db.example/keys?sslrootcert={file}");
    for variable in ["PGSSLCERT", "PGSSLCRL", "PGSSLCRLDIR"] {
        let error = with_tls(&url, &[(variable, "/nonexistent/tls")]).unwrap_err();
        let BadUrl::File { setting, path, .. } = &error else {
            panic!("{error}")
        };
        assert_eq!((*setting, path.as_str()), (variable, "/nonexistent/tls"));
    }
    assert_eq!(
        parse("postgres://db/keys?sslcert=a%0Ab"),
        Err(BadUrl::WhiteSpace)
    );
}

/// OpenSSL asks for the password of a private key on the terminal if libpq has none.
#[test]
fn password_of_a_private_key_is_never_asked_for() {
    let password = |url: &str| {
        let parameters = with_tls(url, &[]).unwrap();
        parameters.get("sslpassword").cloned()
    };
    assert!(password("postgres://localhost/keys").is_some_and(|text| !text.is_empty()));
    assert_eq!(
        password("postgres://localhost/keys?sslpassword=canary").as_deref(),
        Some("canary")
    );
    let url = parse("postgres://localhost/keys?sslpassword=canary").unwrap();
    assert!(url.has_password() && !format!("{url:?} {url}").contains("canary"));
    assert!(!parse("postgres://localhost/keys").unwrap().has_password());
}
