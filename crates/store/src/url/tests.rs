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
    let remote = parse("postgres://db.example/tollkey").unwrap();
    assert!(remote.resolve(true, |_| None).is_ok());
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
