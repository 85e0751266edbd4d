//! Tests which URLs are accepted, which parameters are passed to libpq, and that no error quotes a URL.

use super::*;

fn parse(url: &str) -> Result<DatabaseUrl, BadUrl> {
    DatabaseUrl::parse(url)
}

fn resolve(url: &str) -> Result<Target, BadUrl> {
    parse(url)?.resolve(false, |_| None)
}

fn parameters(url: &str) -> Vec<(&'static str, String)> {
    match parse(url).unwrap().location {
        Location::Postgres(parameters) => parameters.into_iter().collect(),
        Location::Memory | Location::File(_) => panic!("{url} is not a PostgreSQL URL"),
    }
}

#[test]
fn sqlite_urls_name_a_file_or_memory() {
    assert_eq!(
        resolve("sqlite://tollkey.db"),
        Ok(Target::File("./tollkey.db".into()))
    );
    assert_eq!(
        resolve("sqlite://data/a b.db"),
        Ok(Target::File("./data/a b.db".into()))
    );
    assert_eq!(
        resolve("sqlite:///var/lib/t.db"),
        Ok(Target::File("/var/lib/t.db".into()))
    );
    assert_eq!(
        resolve("sqlite://file:x"),
        Ok(Target::File("./file:x".into()))
    );
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
    let cases: [(&str, &[(&str, &str)]); 18] = [
        ("postgres://", &[]),
        ("postgresql:///keys", &[("dbname", "keys")]),
        ("postgres://db.example", &[("host", "db.example")]),
        (
            "postgres://me@db.example:5433/keys",
            &[
                ("dbname", "keys"),
                ("host", "db.example"),
                ("port", "5433"),
                ("user", "me"),
            ],
        ),
        (
            "postgres://me:a%40b%2Fc%3Ad%3Fe%23f%25g%20h@db/k",
            &[
                ("dbname", "k"),
                ("host", "db"),
                ("password", "a@b/c:d?e#f%g h"),
                ("user", "me"),
            ],
        ),
        (
            "postgres://me:a:b#c'd\\e@db",
            &[("host", "db"), ("password", "a:b#c'd\\e"), ("user", "me")],
        ),
        ("postgres://me:@db", &[("host", "db"), ("user", "me")]),
        (
            "postgres://m%C3%A9@db/k%2Fl",
            &[("dbname", "k/l"), ("host", "db"), ("user", "mé")],
        ),
        (
            "postgres://[::1]:5432/k",
            &[("dbname", "k"), ("host", "::1"), ("port", "5432")],
        ),
        (
            "postgres://[fe80::1%25eth0]/k",
            &[("dbname", "k"), ("host", "fe80::1%eth0")],
        ),
        (
            "postgres://one:1,two/k",
            &[("dbname", "k"), ("host", "one,two"), ("port", "1,")],
        ),
        (
            "postgres://%2Fvar%2Frun/k",
            &[("dbname", "k"), ("host", "/var/run")],
        ),
        (
            "postgres:///k?host=/var/run/postgresql&port=5433",
            &[
                ("dbname", "k"),
                ("host", "/var/run/postgresql"),
                ("port", "5433"),
            ],
        ),
        (
            "postgres://me:p@localhost/k?host=/cloudsql/a:b:c",
            &[
                ("dbname", "k"),
                ("host", "/cloudsql/a:b:c"),
                ("password", "p"),
                ("user", "me"),
            ],
        ),
        (
            "postgres://db/k?user=me@corp&pass%77ord=p",
            &[
                ("dbname", "k"),
                ("host", "db"),
                ("password", "p"),
                ("user", "me@corp"),
            ],
        ),
        (
            "postgres://me@db?application_name=a@b",
            &[("application_name", "a@b"), ("host", "db"), ("user", "me")],
        ),
        (
            "postgres://db/k?ssl=true",
            &[("dbname", "k"), ("host", "db"), ("sslmode", "require")],
        ),
        (
            "postgres://db/k?hostaddr=192.0.2.7&sslmode=",
            &[("dbname", "k"), ("host", "db"), ("hostaddr", "192.0.2.7")],
        ),
    ];
    for (url, expected) in cases {
        let expected: Vec<_> = expected
            .iter()
            .map(|(name, value)| (*name, (*value).to_owned()))
            .collect();
        assert_eq!(parameters(url), expected, "{url}");
    }
}

#[test]
fn malformed_urls_are_rejected_without_quoting_them() {
    for (url, rule) in [
        ("postgres://me:canary%zz@db/keys", BadUrl::Escape),
        ("postgres://me:canary%@db/keys", BadUrl::Escape),
        ("postgres://me:canary%4@db/keys", BadUrl::Escape),
        ("postgres://me:canary%ff@db/keys", BadUrl::NotUtf8),
        ("postgres://me:canary%00@db/keys", BadUrl::WhiteSpace),
        ("postgres://me:can ary@db/keys", BadUrl::WhiteSpace),
        ("postgres://me:canary@db/keys\n", BadUrl::WhiteSpace),
        ("postgres://me:can@ary@db/keys", BadUrl::At),
        ("postgres://me:can@ary@db", BadUrl::At),
        ("postgres://me:can/ary@db/keys", BadUrl::Path),
        ("postgres://me:123/canary@db/keys", BadUrl::Path),
        ("postgres://me:123/canary@db", BadUrl::Path),
        ("postgres://me:p@can/ary@db/keys", BadUrl::Path),
        ("postgres://me:can?ary@db/keys", BadUrl::QuestionMark),
        ("postgres://me:can?ary=x@db/keys", BadUrl::QuestionMark),
        ("postgres://me@db:can#ary/keys", BadUrl::Port),
        ("postgres://me@db/keys#canary", BadUrl::Path),
        ("postgres://me@db/keys?sslmode=require#canary", BadUrl::Path),
        ("postgres://:canary@db/keys", BadUrl::NoUser),
        ("postgres://@canary/keys", BadUrl::NoUser),
        ("postgres://:@canary/keys", BadUrl::NoUser),
        ("postgres://me:canary/keys", BadUrl::Port),
        ("postgres://me:canary", BadUrl::Port),
        ("postgres://db:0/canary", BadUrl::Port),
        ("postgres://db:65536/canary", BadUrl::Port),
        ("postgres://one:1,two:canary/keys", BadUrl::Port),
        ("postgres://db/keys?port=canary", BadUrl::Port),
        ("postgres://me:p@can$ary/keys", BadUrl::Host),
        ("postgres://me:p@can%2Cary/keys", BadUrl::Host),
        ("postgres://me:p@[canary]/keys", BadUrl::Host),
        ("postgres://me:p@[::1]canary/keys", BadUrl::Host),
        ("postgres://me:p@[::1/canary", BadUrl::Host),
        ("postgres://me@::1/canary", BadUrl::Port),
        ("postgres://db/keys?canary", BadUrl::NoValue(1)),
        (
            "postgres://db/keys?sslmode=disable&canary=1",
            BadUrl::UnknownParameter(2),
        ),
        (
            "postgres://db/keys?replication=canary",
            BadUrl::UnknownParameter(1),
        ),
        (
            "postgres://me:canary@db/keys?password=canary",
            BadUrl::Repeated("password"),
        ),
        (
            "postgres://canary@db/keys?user=canary",
            BadUrl::Repeated("user"),
        ),
        (
            "postgres://db/canary?dbname=canary",
            BadUrl::Repeated("dbname"),
        ),
        ("postgres://db/keys&password=canary", BadUrl::DatabaseName),
        ("postgres://db/keys;password=canary", BadUrl::DatabaseName),
        ("postgres://db/keys%3Fpassword=canary", BadUrl::DatabaseName),
        (
            "postgres://db/keys%26password%3Dcanary",
            BadUrl::DatabaseName,
        ),
        ("postgres://db/keys%20canary", BadUrl::DatabaseName),
        (
            "postgres://db/?dbname=password%3Dcanary",
            BadUrl::DatabaseName,
        ),
        (
            "postgres://db/?dbname=host%3Ddb%20password%3Dcanary",
            BadUrl::DatabaseName,
        ),
        (
            "postgres://db/keys?host=canary&host=canary",
            BadUrl::Repeated("host"),
        ),
        (
            "host=db user=me password=canary dbname=keys",
            BadUrl::Keywords,
        ),
        ("password=canary", BadUrl::Keywords),
        ("canary", BadUrl::Scheme),
        ("mysql://me:canary@db/keys", BadUrl::Scheme),
        ("sqlite://canary?key=canary", BadUrl::NoFile),
        ("sqlite://canary\n", BadUrl::WhiteSpace),
        (
            "postgres://db/keys?target_session_attrs=any",
            BadUrl::Standby,
        ),
    ] {
        let error = parse(url).unwrap_err();
        assert_eq!(error, rule, "{url}");
        assert!(
            !error.to_string().contains("can") && !error.to_string().contains("ary@"),
            "{url}: {error}"
        );
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
    for mode in [
        "disable",
        "allow",
        "prefer",
        "require",
        "verify-ca",
        "verify-full",
    ] {
        assert!(
            parse(&format!("postgres://db/keys?sslmode={mode}")).is_ok(),
            "{mode}"
        );
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
    assert_eq!(
        parse("postgres:///tollkey")
            .unwrap()
            .resolve(false, elsewhere),
        Err(BadUrl::NeedsTls)
    );
    assert!(
        parse("postgres://db.example/tollkey")
            .unwrap()
            .resolve(true, |_| None)
            .is_ok()
    );
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
    assert!(conninfo.contains(r"password='it\'s\\'"), "{conninfo}");
    assert!(
        conninfo.contains("target_session_attrs='read-write'"),
        "{conninfo}"
    );
    assert!(
        conninfo.contains("connect_timeout='9'") && !conninfo.contains("connect_timeout='3'"),
        "{conninfo}"
    );
    assert!(
        conninfo.contains("tcp_user_timeout='3000'") && conninfo.contains("client_encoding='UTF8'"),
        "{conninfo}"
    );
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
