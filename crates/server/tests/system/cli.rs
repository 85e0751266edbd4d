//! The command line: what each command does, and its errors.

use std::{fs, path::Path};

use serde_json::json;
use tollkey_store::testing::{Database, backends};

use crate::{
    binary::{Server, Tollkey, member, merchant, operator},
    support::SECRET,
};

#[actix_web::test]
async fn help_names_every_command_and_setting() {
    let help = Tollkey::bare().output_of(&["--help"]).await;
    for command in [
        "serve",
        "migrate",
        "token",
        "service-key",
        "openapi",
        "audit",
        "account",
        "healthcheck",
        "config",
        "dashboard-link",
        "completions",
    ] {
        assert!(
            help.lines()
                .any(|line| line.trim_start().starts_with(&format!("{command} "))),
            "{command}: {help}"
        );
    }
    for setting in tollkey_server::config::SETTINGS.iter() {
        let flag = setting
            .flag
            .iter()
            .all(|flag| help.contains(&format!("--{flag}")));
        assert!(
            flag && help.contains(&setting.env),
            "{}: {help}",
            setting.env
        );
    }
    assert!(
        help.contains("[env: TOLLKEY_JWT_HS256_SECRET]") && !help.contains("--jwt-hs256-secret "),
        "{help}"
    );
    for command in [
        &["audit", "verify", "--help"][..],
        &["service-key", "--help"],
        &["account", "set", "--help"],
    ] {
        let help = Tollkey::bare().output_of(command).await;
        assert!(
            !help.contains("--listen") && help.contains("listed by 'tollkey --help'"),
            "settings are shown once: {help}"
        );
    }
    assert!(
        Tollkey::bare()
            .output_of(&["--version"])
            .await
            .starts_with("tollkey ")
    );
}

#[actix_web::test]
async fn unknown_arguments_are_rejected() {
    for arguments in [
        &["--no-such-flag"][..],
        &["no-such-command"],
        &["account", "show"],
        &["token", "--role", "admin"],
    ] {
        let finished = Tollkey::bare().run(arguments).await;
        assert_eq!(finished.code, Some(2), "{finished}");
        assert!(
            finished.stderr.contains("--help") && finished.stdout.is_empty(),
            "{finished}"
        );
    }
    // A secret on the command line is rejected and not printed.
    let canary = "canary-".repeat(8);
    for arguments in [
        &[&format!("--jwt-hs256-secret={canary}")[..]][..],
        &["--jwt-hs256-secret", &canary],
        &["serve", &format!("--jwt-hs256-secret={canary}")],
    ] {
        let finished = Tollkey::bare().run(arguments).await;
        assert_eq!(finished.code, Some(2), "{finished}");
        assert!(!finished.stderr.contains(&canary), "{finished}");
    }
}

#[actix_web::test]
async fn openapi_prints_the_document_in_the_repository() {
    let tollkey = Tollkey::bare();
    let document = tollkey.run(&["openapi"]).await;
    assert!(
        document.success() && document.stderr.is_empty(),
        "{document}"
    );
    assert!(
        fs::read_dir(tollkey.directory())
            .expect("the working directory")
            .next()
            .is_none(),
        "the command opens no database"
    );
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/tollkey.json");
    let committed = fs::read_to_string(committed).expect("the document");
    assert!(
        document.stdout == committed,
        "openapi/tollkey.json is out of date; run `cargo xtask openapi`"
    );

    let server = Tollkey::development().serve().await;
    assert!(
        server
            .get("/openapi.json")
            .await
            .body
            .contains("\"openapi\"")
    );
}

#[actix_web::test]
async fn completions_name_every_command_and_documented_flag() {
    for shell in ["bash", "zsh", "fish"] {
        let tollkey = Tollkey::bare().with("TOLLKEY_LISTEN", "invalid");
        let script = tollkey.output_of(&["completions", shell]).await;
        for word in ["service-key", "completions", "database-url", "config"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
        // The former name of a setting is accepted, but not documented.
        assert!(!script.contains("remembered-keys"), "{shell}");
    }
    let unknown = Tollkey::bare().run(&["completions", "sh"]).await;
    unknown.assert_rejected(&["bash", "zsh", "fish"]);
}

#[actix_web::test]
async fn token_command_signs_with_the_secret_of_the_server() {
    let tollkey = Tollkey::development();
    let server = tollkey.serve().await;
    let token = tollkey.output_of(&["token", "--account", "acme"]).await;
    server.application(&token, "Web Store").await;
    let other = tollkey
        .output_of(&[
            "token",
            "--account",
            "globex",
            "--subject",
            "user_7",
            "--ttl",
            "60",
        ])
        .await;
    let list = server.get("/applications").bearer(&other).await;
    assert_eq!(list.json()["totalItems"], 0, "{list}");
    assert_eq!(
        server.get("/accounts/acme").bearer(&token).await.status,
        403
    );
    let operator = tollkey.output_of(&["token", "--role", "operator"]).await;
    assert_eq!(
        server.get("/accounts/acme").bearer(&operator).await.status,
        200
    );
    assert_eq!(
        server
            .get("/applications?account=acme")
            .bearer(&operator)
            .await
            .json()["totalItems"],
        1
    );
    let service = tollkey.output_of(&["token", "--role", "service"]).await;
    let verify = server
        .post(
            "/verify",
            json!({"key": format!("ks_test_{}", "a".repeat(32))}),
        )
        .bearer(&service);
    assert_eq!(member(&verify.await, "code"), "unknown_key");

    tollkey
        .run(&["token"])
        .await
        .assert_rejected(&["--account", "--role"]);
    tollkey
        .run(&["token", "--account", "a b"])
        .await
        .assert_rejected(&["--account"]);
    for ttl in ["0", "-5", &i64::MAX.to_string()] {
        tollkey
            .run(&["token", "--account", "acme", &format!("--ttl={ttl}")])
            .await
            .assert_rejected(&[]);
    }

    // A configured secret works on every machine.
    let configured = Tollkey::bare().with("TOLLKEY_JWT_HS256_SECRET", SECRET);
    let token = configured.output_of(&["token", "--account", "acme"]).await;
    let database = Database::sqlite();
    let server = Tollkey::on(&database).serve().await;
    assert_eq!(server.get("/applications").bearer(&token).await.status, 200);
    assert!(
        !configured.directory().join("tollkey.db").exists(),
        "a token needs no database"
    );
}

#[actix_web::test]
async fn service_keys_are_created_listed_and_revoked() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let server = tollkey.serve().await;
        let created = tollkey
            .run(&["service-key", "create", "checkout gateway"])
            .await;
        assert!(created.success(), "{created}");
        let text = created.stdout.trim_end();
        assert!(
            text.starts_with("tks_") && text.len() == 36 && created.stdout.lines().count() == 1,
            "{created}"
        );
        assert!(
            created.stderr.contains("checkout gateway") && !created.stderr.contains(text),
            "{created}"
        );

        let list = tollkey.output_of(&["service-key", "list"]).await;
        assert!(
            list.contains("checkout gateway") && list.contains(&text[32..]) && !list.contains(text),
            "{list}"
        );
        let id = list.split_whitespace().next().expect("an ID");
        assert!(created.stderr.contains(id), "{created}");

        let unknown = json!({"key": format!("ks_test_{}", "a".repeat(32))});
        let verify_status = async || {
            server
                .post("/verify", unknown.clone())
                .bearer(text)
                .await
                .status
        };
        assert_eq!(
            (verify_status().await, verify_status().await),
            (200, 200),
            "the server has cached the service key"
        );
        assert_eq!(
            tollkey.output_of(&["service-key", "revoke", id]).await,
            format!("revoked {id}")
        );
        assert_eq!(
            verify_status().await,
            401,
            "the command waited for propagation"
        );
        tollkey.output_of(&["service-key", "revoke", id]).await;
        assert!(
            tollkey
                .output_of(&["service-key", "list"])
                .await
                .contains("revoked")
        );

        tollkey
            .run(&["service-key", "create", ""])
            .await
            .assert_rejected(&["the name"]);
        tollkey
            .run(&["service-key", "revoke", "no-id"])
            .await
            .assert_rejected(&["tollkey: "]);
        tollkey
            .run(&[
                "service-key",
                "revoke",
                "0198c0de-0000-7000-8000-000000000001",
            ])
            .await
            .assert_rejected(&["tollkey: "]);
    }
}

#[actix_web::test]
async fn accounts_are_shown_and_set() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let server = tollkey.serve().await;
        let show = ["account", "show", "acme"];
        assert_eq!(
            tollkey.output_of(&show).await,
            "acme  operating_model=primary_merchant"
        );
        let set = ["account", "set", "acme", "--operating-model", "ecosystem"];
        assert_eq!(
            tollkey.output_of(&set).await,
            "acme  operating_model=ecosystem"
        );
        assert_eq!(
            tollkey.output_of(&set).await,
            "acme  operating_model=ecosystem"
        );
        assert_eq!(
            tollkey.output_of(&show).await,
            "acme  operating_model=ecosystem"
        );
        let account = server.get("/accounts/acme").bearer(&operator()).await;
        assert_eq!(member(&account, "operating_model"), "ecosystem");
        let log = server
            .get("/audit-log")
            .bearer(&merchant("acme"))
            .await
            .json();
        assert_eq!(
            log.as_array().map(Vec::len),
            Some(1),
            "one entry for one change: {log}"
        );
        assert_eq!(
            (&log[0]["action"], &log[0]["actor"]["type"]),
            (&json!("account.updated"), &json!("cli")),
            "{log}"
        );
        tollkey
            .run(&["account", "show", "a b"])
            .await
            .assert_rejected(&["a b"]);
        tollkey
            .run(&["account", "set", "acme", "--operating-model", "shop"])
            .await
            .assert_rejected(&["shop"]);
    }
}

/// Creates a log of four entries for each of two accounts. Returns the heads that `tollkey audit verify` prints.
async fn two_logs(tollkey: &Tollkey, server: &Server) -> Vec<String> {
    for account in ["acme", "globex"] {
        let application = server.application(&merchant(account), "Web Store").await;
        for _ in 0..3 {
            server.key(&merchant(account), &application).await;
        }
    }
    heads(&tollkey.output_of(&["audit", "verify"]).await)
}

fn heads(report: &str) -> Vec<String> {
    let lines = report.lines().filter_map(|line| line.split_once(" head "));
    lines.map(|(_, head)| head.to_owned()).collect()
}

#[actix_web::test]
async fn audit_verify_reports_an_intact_log() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        tollkey.output_of(&["migrate"]).await;
        let empty = "the audit log is intact (entries checked: 0, accounts: 0)";
        assert_eq!(tollkey.output_of(&["audit", "verify"]).await, empty);
        let server = tollkey.serve().await;
        let heads = two_logs(&tollkey, &server).await;
        assert_eq!(heads.len(), 2);
        let report = tollkey
            .output_of(&["audit", "verify", "--head", &heads[0], "--head", &heads[1]])
            .await;
        let expected = ["acme", "globex"]
            .iter()
            .zip(&heads)
            .map(|(account, head)| format!("{account}  4 entries  head {head}\n"));
        let end = "the audit log is intact (entries checked: 8, accounts: 2)";
        assert_eq!(report, format!("{}{end}", expected.collect::<String>()));
        tollkey
            .run(&["audit", "verify", "--account", "acmee"])
            .await
            .assert_rejected(&["account acmee has no audit log"]);
        // A head stays valid while the log grows, and works with `--account`.
        server.application(&merchant("acme"), "Second Store").await;
        let report = tollkey
            .output_of(&["audit", "verify", "--account", "acme", "--head", &heads[0]])
            .await;
        assert!(
            report.starts_with("acme  5 entries") && !report.contains("globex"),
            "{report}"
        );

        tollkey
            .run(&["audit", "verify", "--head", "abc"])
            .await
            .assert_rejected(&["--head"]);
        tollkey
            .run(&["audit", "verify", "--head", &"0".repeat(64)])
            .await
            .assert_rejected(&["no entry has the hash"]);
    }
}

#[actix_web::test]
async fn commands_create_no_database_and_name_its_path() {
    // Every command that uses a database, except `serve` and `migrate`.
    let commands: [&[&str]; 9] = [
        &["audit", "verify"],
        &["account", "show", "acme"],
        &["account", "set", "acme", "--operating-model", "ecosystem"],
        &["service-key", "create", "gateway"],
        &["service-key", "list"],
        &[
            "service-key",
            "revoke",
            "0198c0de-0000-7000-8000-000000000001",
        ],
        &["session", "end", "--all"],
        &["token", "--account", "acme"],
        &["token", "--role", "operator"],
    ];
    for command in commands {
        let tollkey = Tollkey::bare();
        let path = tollkey.directory().join("tollkey.db");
        let shown = path
            .canonicalize()
            .unwrap_or_else(|_| path.clone())
            .display()
            .to_string();
        let finished = tollkey.run(command).await;
        finished.assert_rejected(&[
            "SQLite database ",
            &shown,
            " does not exist",
            "DATABASE_URL",
        ]);
        assert_eq!(finished.stdout, "", "{command:?}");
        assert_eq!(
            fs::read_dir(tollkey.directory())
                .expect("the working directory")
                .count(),
            0,
            "{command:?} creates nothing"
        );
        tollkey
            .run(&[command, &["--database-url", "sqlite://:memory:"]].concat())
            .await
            .assert_rejected(&["in memory"]);
        if command[0] == "token" {
            fs::write(&path, "").expect("a file");
            tollkey.run(command).await.assert_rejected(&[
                "development secret",
                ".jwt-secret",
                "tollkey serve",
            ]);
            assert_eq!(
                fs::read_dir(tollkey.directory())
                    .expect("the working directory")
                    .count(),
                1,
                "no secret is created"
            );
            continue;
        }
        // A file that is not a database stays as it is, and an older schema is not migrated.
        for (content, words) in [
            ("", "is empty"),
            (
                "some text that is longer than a header",
                "not a SQLite database",
            ),
        ] {
            fs::write(&path, content).expect("a file");
            tollkey.run(command).await.assert_rejected(&[&shown, words]);
            assert_eq!(
                fs::read_to_string(&path).expect("the file"),
                content,
                "{command:?}"
            );
        }
        fs::remove_file(&path).expect("a removed file");
        fs::create_dir(&path).expect("a directory");
        tollkey
            .run(command)
            .await
            .assert_rejected(&[&shown, "Is a directory (os error 21)"]);

        let database = Database::sqlite();
        drop(database.store());
        database.sql("DELETE FROM __diesel_schema_migrations WHERE version = '20261121200000'");
        let older = Tollkey::on(&database).run(command).await;
        older.assert_rejected(&["schema is older", "tollkey migrate", "tollkey.db"]);
    }
}

#[actix_web::test]
async fn commands_name_their_database_and_what_they_did() {
    for database in backends() {
        let tollkey = Tollkey::on(&database).without("TOLLKEY_MIGRATE");
        let target = match database.directory() {
            Some(directory) => format!(
                "database: SQLite database {}",
                directory.join("tollkey.db").display()
            ),
            None => "database: PostgreSQL database t".to_owned(),
        };
        let migrated = tollkey.run(&["migrate"]).await;
        assert!(
            migrated.success() && migrated.stderr.contains(&target),
            "{migrated}"
        );
        let applied = migrated
            .stdout
            .lines()
            .filter(|line| line.starts_with("applied 2026"))
            .count();
        assert_eq!(applied, 8, "{migrated}");
        assert_eq!(
            tollkey.output_of(&["migrate"]).await,
            "the schema was already up to date"
        );
        for command in [
            &["migrate"][..],
            &["audit", "verify"],
            &["account", "show", "acme"],
            &["service-key", "list"],
            &["session", "end", "--all"],
        ] {
            let finished = tollkey.run(command).await;
            assert!(
                finished.success() && finished.stderr.contains(&target),
                "{command:?}: {finished}"
            );
            assert!(
                !finished.stdout.contains("database:"),
                "{command:?}: {finished}"
            );
        }
        let token = tollkey.run(&["token", "--account", "acme"]).await;
        assert!(
            token.success()
                && token
                    .stderr
                    .contains("signed with TOLLKEY_JWT_HS256_SECRET"),
            "{token}"
        );
        assert!(
            token.stdout.starts_with("ey") && token.stdout.lines().count() == 1,
            "{token}"
        );
    }
}

/// Runs a command whose standard output is a closed pipe.
async fn without_reader(tollkey: &Tollkey, arguments: &[&str]) -> std::process::Output {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let child = tollkey
        .command(arguments)
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .spawn();
    child
        .expect("a started command")
        .wait_with_output()
        .await
        .expect("the output")
}

#[actix_web::test]
async fn closed_output_causes_no_panic() {
    let database = Database::sqlite();
    let tollkey = Tollkey::on(&database);
    tollkey.output_of(&["migrate"]).await;
    for (arguments, succeeds) in [
        (&["openapi"][..], true),
        (&["--help"], true),
        (&["--version"], true),
        (&["migrate"], true),
        (&["audit", "verify"], true),
        (&["account", "show", "acme"], true),
        (&["session", "end", "--all"], true),
        (&["token", "--account", "acme"], true),
        // The key would be lost, so the error names its ID for revoking it.
        (&["service-key", "create", "gateway"], false),
        (&["service-key", "list"], true),
    ] {
        let output = without_reader(&tollkey, arguments).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.success(), succeeds, "{arguments:?}: {stderr}");
        assert!(!stderr.contains("panicked"), "{arguments:?}: {stderr}");
        if !succeeds {
            assert!(
                stderr.contains("was created but could not be printed; revoke it"),
                "{stderr}"
            );
        }
    }
    // Any other write error is reported.
    if let Ok(full) = fs::File::options().write(true).open("/dev/full") {
        let child = tollkey
            .command(&["openapi"])
            .stdout(full)
            .stderr(std::process::Stdio::piped())
            .spawn();
        let output = child
            .expect("a started command")
            .wait_with_output()
            .await
            .expect("the output");
        assert!(
            !output.status.success()
                && String::from_utf8_lossy(&output.stderr).contains("cannot write to stdout")
        );
    }
}

#[actix_web::test]
async fn no_command_prints_the_database_password() {
    let password = "canary";
    let urls = [
        "postgres://shop:canary%zz@127.0.0.1:1/keys",
        "postgres://shop:can ary canary@127.0.0.1:1/keys",
        "postgres://shop:canary#@127.0.0.1:1/keys",
        "postgres://shop:@canary@127.0.0.1:1/keys",
        "postgres://shop:/canary@127.0.0.1:1/keys",
        "postgres://shop:canary:@127.0.0.1:1/keys",
        "postgres://shop:canary?@127.0.0.1:1/keys",
        "postgres://shop@127.0.0.1:1#canary/keys",
        "postgres://:canary@127.0.0.1:1/keys",
        "postgres://shop:canary@127.0.0.1:port/keys",
        "postgres://shop:canary@127.0.0.1:1,127.0.0.1:2/keys",
        "postgres://shop:canary@[::1]:1/keys",
        "postgres://shop:canary@[::1:1/keys",
        "postgres://shop:canary@localhost/keys?host=/no/such/directory",
        "postgres://shop@127.0.0.1:1/keys?password=canary",
        "postgres://shop@127.0.0.1:1/keys?password=canary&password=canary",
        "postgres://shop@127.0.0.1:1/keys?pass%77ord=canary",
        "postgres://shop@127.0.0.1:1/keys?passwort=canary",
        "postgres://shop:canary@127.0.0.1:1/keys?sslmode=canary",
        "postgres://shop:canary@db.example/keys",
        "postgres://shop:canary@127.0.0.1:1/keys?channel_binding=canary",
        "postgres://shop:canary@127.0.0.1:1/keys?service=nowhere&sslmode=disable",
        "host=127.0.0.1 port=1 user=shop password=canary",
        "postgres:/shop:canary@127.0.0.1/keys",
        "sqlite://no/such/directory/tollkey.db?key=canary",
    ];
    let with = |tollkey: Tollkey| {
        let tollkey = tollkey
            .with("TOLLKEY_JWT_HS256_SECRET", SECRET)
            .with("TOLLKEY_LOG", "trace");
        tollkey
            .with("TOLLKEY_DATABASE_WAIT_SECONDS", "0")
            .with("RUST_BACKTRACE", "1")
    };
    let silent = |finished: &crate::binary::Finished, what: &str| {
        finished.assert_rejected(&[]);
        assert!(
            !finished.to_string().contains(password),
            "{what}: {finished}"
        );
    };
    for url in urls {
        let tollkey = with(Tollkey::bare()).with("DATABASE_URL", url);
        for command in [
            &["serve"][..],
            &["migrate"],
            &["audit", "verify"],
            &["service-key", "create", "x"],
        ] {
            silent(&tollkey.run(command).await, url);
        }
        // On the command line: in the flag, in a misspelled flag, or without a flag.
        let bare = with(Tollkey::bare());
        let flag = format!("--database-url={url}");
        let misspelled = format!("--database-uri={url}");
        for arguments in [
            &[flag.as_str()][..],
            &["migrate", &flag],
            &[&misspelled],
            &[url],
            &["migrate", url],
        ] {
            silent(&bare.run(arguments).await, url);
        }
        // In the configuration file, also in the form of an environment file.
        for content in [
            format!("database_url = \"{url}\"\n"),
            format!("DATABASE_URL={url}\n"),
            format!("{url}\n"),
        ] {
            let tollkey = with(Tollkey::bare());
            fs::write(tollkey.directory().join("tollkey.toml"), content).expect("a file");
            silent(&tollkey.run(&["migrate"]).await, url);
        }
    }
    let at = with(Tollkey::bare())
        .with("DATABASE_URL", "postgres://shop:can@ary@db.example/keys")
        .run(&["migrate"])
        .await;
    assert!(
        at.assert_rejected(&["DATABASE_URL", "%40"]).contains('@') && !at.stderr.contains("TLS"),
        "{at}"
    );
    // A key or token in a wrong argument is not printed either.
    let key = format!("tks_{}", "EXAMPLE".repeat(5)[..32].to_owned());
    for arguments in [
        &["account", "show", "a b", &key][..],
        &[&key],
        &["token", "--role", &key],
        &["--listen", "x", &key],
    ] {
        let finished = Tollkey::bare().run(arguments).await;
        finished.assert_rejected(&[]);
        assert!(!finished.stderr.contains(&key), "{finished}");
    }
    let pasted = with(Tollkey::bare())
        .without("TOLLKEY_JWT_HS256_SECRET")
        .with(
            "TOLLKEY_JWT_PUBLIC_KEY_FILE",
            "-----BEGIN PRIVATE KEY-----\ncanary\n-----END PRIVATE KEY-----",
        )
        .with("TOLLKEY_JWT_ISSUER", "i")
        .with("TOLLKEY_JWT_AUDIENCE", "a")
        .run(&["serve"])
        .await;
    silent(&pasted, "a pasted key");
}

#[actix_web::test]
async fn audit_verify_detects_changes_to_the_log() {
    let edit = "UPDATE audit_log SET actor_id = 'nobody' WHERE account_id = 'acme' AND seq = 2";
    // The same value for most JSON parsers, but another one for a parser that takes the first of two equal fields.
    let twice = "UPDATE audit_log SET changes = '{\"name\":\"evil\",' || substr(changes, 2) \
                 WHERE account_id = 'acme' AND seq = 2";
    let unreadable =
        "UPDATE audit_log SET action = 'api_key.borrowed' WHERE account_id = 'acme' AND seq = 2";
    let headless = "DELETE FROM audit_heads WHERE account_id = 'acme'";
    let gap = "DELETE FROM audit_log WHERE account_id = 'acme' AND seq = 2";
    let cut = "DELETE FROM audit_log WHERE account_id = 'acme' AND seq = 4";
    // Removes an entry and closes the gap.
    let closed = "DELETE FROM audit_log WHERE account_id = 'acme' AND seq = 3; \
                  UPDATE audit_log SET seq = 3 WHERE account_id = 'acme' AND seq = 4";
    let swapped = "UPDATE audit_log SET seq = 9 WHERE account_id = 'acme' AND seq = 2; \
                   UPDATE audit_log SET seq = 2 WHERE account_id = 'acme' AND seq = 3; \
                   UPDATE audit_log SET seq = 3 WHERE account_id = 'acme' AND seq = 9";
    let moved = "UPDATE audit_log SET account_id = 'initech' WHERE account_id = 'acme'";
    let inserted = "INSERT INTO audit_log (account_id, seq, id, occurred_at, action, actor_kind, actor_id, target_kind, \
                    target_id, changes, hash) SELECT account_id, 5, target_id_bytes, occurred_at, action, actor_kind, \
                    actor_id, target_kind, target_id, changes, hash FROM (SELECT audit_log.*, \
                    (SELECT id FROM applications LIMIT 1) AS target_id_bytes FROM audit_log) AS entries \
                    WHERE account_id = 'acme' AND seq = 4";
    for (what, sql, words) in [
        ("an edit", edit, "entry 2 of account acme was changed"),
        (
            "a repeated field",
            twice,
            "entry 2 of account acme was changed",
        ),
        (
            "an unreadable action",
            unreadable,
            "entry 2 of account acme was changed",
        ),
        (
            "no head",
            headless,
            "the log of account acme ends at entry 4, not at 0",
        ),
        ("a gap", gap, "entry 2 of account acme is missing"),
        (
            "a cut",
            cut,
            "the log of account acme ends at entry 3, not at 4",
        ),
        (
            "a closed gap",
            closed,
            "entry 3 of account acme was changed",
        ),
        ("a swap", swapped, "entry 2 of account acme was changed"),
        ("a move", moved, "entry 1 of account initech was changed"),
        (
            "an insertion",
            inserted,
            "entry 5 of account acme was changed",
        ),
    ] {
        for database in backends() {
            let tollkey = Tollkey::on(&database);
            let server = tollkey.serve().await;
            two_logs(&tollkey, &server).await;
            server.stop().await;
            database.sql(sql);
            let finished = tollkey.run(&["audit", "verify"]).await;
            assert_eq!(finished.code, Some(1), "{what}: {finished}");
            assert!(finished.stderr.contains(words), "{what}: {finished}");
            assert!(!finished.stdout.contains("intact"), "{what}: {finished}");
            assert!(
                finished
                    .stderr
                    .contains("the audit log is not intact (faults: "),
                "{what}: {finished}"
            );
            assert!(
                finished.stdout.contains("globex  4 entries"),
                "the other account is checked: {finished}"
            );
            assert!(
                !finished.stderr.contains("globex"),
                "no fault of the other account: {finished}"
            );
            if what != "a move" {
                tollkey
                    .output_of(&["audit", "verify", "--account", "globex"])
                    .await;
            }
        }
    }
}

#[actix_web::test]
async fn stored_head_detects_a_truncated_log() {
    let cut = "DELETE FROM audit_log WHERE account_id = 'acme' AND seq = 4; \
               UPDATE audit_heads SET seq = 3, hash = (SELECT hash FROM audit_log WHERE account_id = 'acme' AND seq = 3) \
               WHERE account_id = 'acme'";
    let erased = "DELETE FROM audit_log WHERE account_id = 'acme'; DELETE FROM audit_heads WHERE account_id = 'acme'";
    for (what, sql) in [("a cut that moves the end", cut), ("an erased log", erased)] {
        for database in backends() {
            let tollkey = Tollkey::on(&database);
            let server = tollkey.serve().await;
            let heads = two_logs(&tollkey, &server).await;
            server.stop().await;
            database.sql(sql);
            assert!(
                tollkey.run(&["audit", "verify"]).await.success(),
                "{what}: the database alone shows no fault"
            );
            let finished = tollkey
                .run(&["audit", "verify", "--head", &heads[0], "--head", &heads[1]])
                .await;
            assert_eq!(finished.code, Some(1), "{what}: {finished}");
            let words = format!(
                "no entry has the hash {}: a log was cut off or rewritten",
                heads[0]
            );
            assert!(
                finished.stderr.contains(&words) && !finished.stderr.contains(&heads[1]),
                "{what}: {finished}"
            );
        }
    }
}

#[actix_web::test]
async fn healthcheck_requests_readiness() {
    let tollkey = Tollkey::development();
    let server = tollkey.serve().await;
    let listen = server.address.to_string();
    let url = format!("http://{listen}/readyz");
    assert_eq!(
        tollkey
            .output_of(&["healthcheck", "--listen", &listen])
            .await,
        format!("ready: {url}")
    );
    let unspecified = format!("0.0.0.0:{}", server.address.port());
    let output = Tollkey::bare()
        .output_of(&["healthcheck", "--listen", &unspecified])
        .await;
    assert_eq!(output, format!("ready: {url}"));
    server.stop().await;
    tollkey
        .run(&["healthcheck", "--listen", &listen])
        .await
        .assert_rejected(&["no HTTP response", &url, "refused", "--listen"]);
    tollkey
        .run(&["healthcheck"])
        .await
        .assert_rejected(&["--listen"]);
}

#[actix_web::test]
async fn healthcheck_fails_when_the_server_is_not_ready() {
    let database = Database::sqlite();
    let tollkey = Tollkey::on(&database);
    let server = tollkey.serve().await;
    database.sql("DELETE FROM __diesel_schema_migrations WHERE version = '20261121200000'");
    let finished = tollkey
        .run(&["healthcheck", "--listen", &server.address.to_string()])
        .await;
    let expected = format!(
        "not ready: http://{}/readyz responds with status 503;",
        server.address
    );
    assert!(
        finished.code == Some(1) && finished.stdout.starts_with(&expected),
        "{finished}"
    );
}

#[actix_web::test]
async fn invalid_setting_is_one_line_without_secrets() {
    let secret = "canary-".repeat(6);
    let bare = Tollkey::bare;
    let path = |tollkey: &Tollkey, name: &str, content: &str| {
        let path = tollkey.directory().join(name);
        fs::write(&path, content).expect("a file");
        path.to_str().expect("UTF-8").to_owned()
    };
    let with_file = |content: &str| {
        let tollkey = bare();
        path(&tollkey, "tollkey.toml", content);
        tollkey
    };
    let both = bare().with("TOLLKEY_JWT_HS256_SECRET", &secret);
    let file = path(&both, "secret", &secret);
    let pem = bare()
        .with("TOLLKEY_JWT_HS256_SECRET", &secret)
        .with("TOLLKEY_JWT_PUBLIC_KEY_FILE", "key.pem");
    let cases: Vec<(Tollkey, &[&str])> = vec![
        (
            bare().with("TOLLKEY_LOG", ""),
            &["TOLLKEY_LOG (environment)", "must not be empty"],
        ),
        (
            bare().with("TOLLKEY_JWT_HS256_SECRET", ""),
            &[
                "TOLLKEY_JWT_HS256_SECRET (environment)",
                "must not be empty",
            ],
        ),
        (
            bare().with("DATABASE_URL", " "),
            &["DATABASE_URL (environment)", "must not be empty"],
        ),
        (
            bare().with("TOLLKEY_JWT_HS256_SECRET", &secret[..31]),
            &["TOLLKEY_JWT_HS256_SECRET", "at least 32 bytes"],
        ),
        (
            both.with("TOLLKEY_JWT_HS256_SECRET_FILE", &file),
            &[
                "TOLLKEY_JWT_HS256_SECRET (environment)",
                "TOLLKEY_JWT_HS256_SECRET_FILE (environment)",
                "exclude each other",
            ],
        ),
        (
            pem,
            &[
                "TOLLKEY_JWT_HS256_SECRET",
                "TOLLKEY_JWT_PUBLIC_KEY_FILE",
                "exclude each other",
            ],
        ),
        (
            bare()
                .with("TOLLKEY_JWT_PUBLIC_KEY_FILE", "a.pem")
                .with("TOLLKEY_JWT_JWKS_URL", "https://id.example.com/jwks"),
            &[
                "TOLLKEY_JWT_PUBLIC_KEY_FILE",
                "TOLLKEY_JWT_JWKS_URL",
                "exclude each other",
            ],
        ),
        (
            bare().with("TOLLKEY_JWT_PUBLIC_KEY_FILE", "a.pem"),
            &["TOLLKEY_JWT_ISSUER must be set"],
        ),
        (
            bare().with("TOLLKEY_JWT_HS256_SECRET_FILE", "nowhere"),
            &["TOLLKEY_JWT_HS256_SECRET_FILE", "cannot read the file"],
        ),
        (
            bare().with("TOLLKEY_WORKERS", "many"),
            &["TOLLKEY_WORKERS", "whole number"],
        ),
        (
            bare().with("TOLLKEY_LISTEN", "here"),
            &["TOLLKEY_LISTEN", "an address and a port"],
        ),
        (
            bare().with("TOLLKEY_LOG_FORMAT", "xml"),
            &["TOLLKEY_LOG_FORMAT", "pretty or json"],
        ),
        (
            bare().with("TOLLKEY_CONFIG", "nowhere.toml"),
            &["TOLLKEY_CONFIG", "cannot read the file"],
        ),
        (
            bare().with("DATABASE_URL", &format!("mysql://root:{secret}@db/keys")),
            &["DATABASE_URL", "postgres://"],
        ),
        (
            bare().with("DATABASE_URL", &format!("sqlite://keys.db?key={secret}")),
            &["DATABASE_URL", "must name a file"],
        ),
        #[cfg(not(feature = "pg-tls"))]
        (
            bare()
                .with(
                    "DATABASE_URL",
                    &format!("postgres://u:{secret}@db.example.com/keys"),
                )
                .with("TOLLKEY_JWT_HS256_SECRET", SECRET),
            &["TLS", "pg-tls"],
        ),
        (
            bare()
                .with(
                    "DATABASE_URL",
                    &format!("postgres://u:{secret}@127.0.0.1:1/keys"),
                )
                .with("TOLLKEY_DATABASE_WAIT_SECONDS", "0")
                .with("TOLLKEY_JWT_HS256_SECRET", SECRET),
            &["cannot connect to the PostgreSQL database keys at 127.0.0.1:1"],
        ),
        (
            with_file(&format!("jwt_secret = \"{secret}\"\n")),
            &[
                "tollkey.toml",
                "unknown field \"jwt_secret\"",
                "did you mean",
            ],
        ),
        (
            with_file(&format!(
                "listen = \"127.0.0.1:0\"\njwt_hs256_secret = \"{secret}\n"
            )),
            &["tollkey.toml", "line 2"],
        ),
        (
            with_file(&format!("jwt_hs256_secret = {secret}\n")),
            &["tollkey.toml", "line 1"],
        ),
        (
            with_file(&format!("workers = \"{secret}\"\n")),
            &["TOLLKEY_WORKERS", "must be an integer"],
        ),
        (
            with_file("jwt_hs256_secret = \"\"\n"),
            &[
                "TOLLKEY_JWT_HS256_SECRET",
                "tollkey.toml",
                "must not be empty",
            ],
        ),
        (
            with_file(&format!("jwt_hs256_secret = \"{secret}\"\n"))
                .with("TOLLKEY_JWT_JWKS_URL", "https://id.example.com/jwks"),
            &[
                "TOLLKEY_JWT_HS256_SECRET",
                "tollkey.toml",
                "TOLLKEY_JWT_JWKS_URL (environment)",
                "exclude each other",
            ],
        ),
    ];
    for (tollkey, words) in cases {
        let tollkey = tollkey.with("RUST_BACKTRACE", "1");
        let finished = tollkey.start(&[]).await.err().expect("a failed start");
        finished.assert_rejected(words);
        assert_eq!(
            (finished.code, finished.stdout.as_str()),
            (Some(1), ""),
            "{finished}"
        );
        assert!(!finished.stderr.contains("canary"), "{finished}");
        let sentence = finished
            .stderr
            .lines()
            .filter(|line| line.starts_with("tollkey: "))
            .count();
        assert_eq!(sentence, 1, "{finished}");
        assert!(!finished.stderr.contains("backtrace"), "{finished}");
    }
}

#[actix_web::test]
async fn unknown_variable_is_a_warning_and_ends_development_mode() {
    for (name, nearest) in [
        ("TOLLKEY_JWT_HS256_SECRT", "TOLLKEY_JWT_HS256_SECRET"),
        ("TOLLKEY_LISTN", "TOLLKEY_LISTEN"),
    ] {
        let development = Tollkey::development().with(name, "canary");
        let finished = development.start(&[]).await.err().expect("a failed start");
        finished.assert_rejected(&["development mode does not start", name, nearest]);
        assert!(!finished.stderr.contains("canary"), "{finished}");
        assert_eq!(
            fs::read_dir(development.directory())
                .expect("the working directory")
                .count(),
            0,
            "nothing is created"
        );

        let server = Tollkey::on(&Database::sqlite())
            .with(name, "canary")
            .serve()
            .await;
        let log = server.stop().await.stderr;
        let line = log
            .lines()
            .find(|line| line.contains("unknown environment variable"))
            .expect("a warning");
        assert!(
            line.contains("WARN") && line.contains(name) && line.contains(nearest),
            "{line}"
        );
        assert!(!log.contains("canary"), "{log}");
    }
    // Variables of Kubernetes, of the client and of tests are known.
    let server = Tollkey::development()
        .with("TOLLKEY_PORT", "tcp://10.0.0.1:8080")
        .with("TOLLKEY_SERVICE_HOST", "10.0.0.1")
        .with("TOLLKEY_EU_PORT_8080_TCP_ADDR", "10.0.0.1")
        .with("TOLLKEY_URL", "http://127.0.0.1:8080")
        .with("TOLLKEY_TEST_X", "1")
        .serve()
        .await;
    assert!(
        !server
            .stop()
            .await
            .stderr
            .contains("unknown environment variable")
    );
}

#[actix_web::test]
async fn config_check_prints_settings_and_checks_the_database() {
    for database in backends() {
        let tollkey = Tollkey::on(&database).with("TOLLKEY_LISTN", "canary");
        let json = |finished: &crate::binary::Finished| -> serde_json::Value {
            serde_json::from_str(&finished.stdout).expect("JSON")
        };
        let check = ["config", "check", "--format", "json"];
        let older = tollkey.run(&check).await;
        assert_eq!(older.code, Some(1), "not migrated: {older}");
        assert_eq!(json(&older)["checks"][0]["ok"], false, "{older}");
        tollkey.output_of(&["migrate"]).await;
        let finished = tollkey.run(&check).await;
        assert!(finished.success(), "{finished}");
        let report = json(&finished);
        let setting = |name: &str| {
            let all = report["settings"].as_array().expect("settings");
            all.iter()
                .find(|it| it["name"] == name)
                .unwrap_or_else(|| panic!("{name}"))
                .clone()
        };
        let secret = setting("TOLLKEY_JWT_HS256_SECRET");
        assert_eq!(
            (&secret["value"], &secret["source"]),
            (&json!("(hidden)"), &json!("environment"))
        );
        assert_eq!(setting("TOLLKEY_LOG")["source"], "default");
        assert_eq!(report["checks"][0]["ok"], true, "{report}");
        assert!(
            report["warnings"][0]
                .as_str()
                .expect("a warning")
                .contains("did you mean TOLLKEY_LISTEN?"),
            "{report}"
        );
        assert!(
            !finished.stdout.contains(SECRET) && !finished.stdout.contains("canary"),
            "{finished}"
        );

        let text = tollkey
            .output_of(&["config", "check", "--log", "warn"])
            .await;
        assert!(
            text.contains("TOLLKEY_LOG") && text.contains("warn  (flag --log)"),
            "{text}"
        );
        assert!(
            text.contains("database: ok: ") && !text.contains(SECRET),
            "{text}"
        );
    }
}

#[actix_web::test]
async fn config_check_fails_for_unusable_services() {
    let bare = Tollkey::bare();
    let finished = bare.run(&["config", "check"]).await;
    assert_eq!(finished.code, Some(1), "{finished}");
    assert!(
        finished.stdout.contains(" does not exist; run the command"),
        "{finished}"
    );
    assert!(
        finished
            .stdout
            .contains("management tokens: ok: development mode"),
        "{finished}"
    );
    assert_eq!(
        fs::read_dir(bare.directory())
            .expect("the working directory")
            .count(),
        0,
        "the check creates nothing"
    );

    let issuer = wiremock::MockServer::start().await;
    let respond =
        |body: serde_json::Value| wiremock::ResponseTemplate::new(200).set_body_json(body);
    let at = |path: &str| wiremock::Mock::given(wiremock::matchers::path(path));
    at("/none")
        .respond_with(respond(json!({"keys": []})))
        .mount(&issuer)
        .await;
    let ec = json!({
        "kty": "EC", "crv": "P-256", "kid": "1", "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    });
    at("/one")
        .respond_with(respond(json!({"keys": [ec]})))
        .mount(&issuer)
        .await;
    for (path, ok, detail) in [
        ("/one", true, "has 1 usable keys"),
        ("/none", false, "has no usable key"),
        ("/missing", false, "404"),
    ] {
        let tollkey = Tollkey::bare()
            .with("DATABASE_URL", "sqlite://:memory:")
            .with("TOLLKEY_JWT_JWKS_URL", &format!("{}{path}", issuer.uri()))
            .with("TOLLKEY_JWT_ISSUER", "i")
            .with("TOLLKEY_JWT_AUDIENCE", "a");
        let finished = tollkey.run(&["config", "check"]).await;
        assert_eq!(finished.success(), ok, "{finished}");
        let line = finished
            .stdout
            .lines()
            .find(|line| line.contains("management tokens"))
            .expect("a line");
        assert!(line.contains(detail), "{line}");
    }
    // An unreachable OpenID Connect provider.
    let tollkey = Tollkey::bare()
        .with("DATABASE_URL", "sqlite://:memory:")
        .with("TOLLKEY_OIDC_ISSUER", &issuer.uri())
        .with("TOLLKEY_OIDC_CLIENT_ID", "tollkey")
        .with("TOLLKEY_PUBLIC_URL", "https://keys.example.com");
    let finished = tollkey.run(&["config", "check"]).await;
    assert_eq!(finished.code, Some(1), "{finished}");
    assert!(
        finished.stdout.contains("OpenID Connect: FAILED: "),
        "{finished}"
    );
}

#[actix_web::test]
async fn dashboard_link_signs_in_at_a_running_server() {
    let tollkey = Tollkey::development();
    tollkey
        .run(&["dashboard-link", "--listen", "127.0.0.1:1"])
        .await
        .assert_rejected(&["tollkey.db does not exist"]);
    let server = tollkey.serve().await;
    let listen = server.address.to_string();
    let command = ["dashboard-link", "--listen", listen.as_str()];
    let (first, second) = (
        tollkey.output_of(&command).await,
        tollkey.output_of(&command).await,
    );
    assert_ne!(first, second);
    for link in [first, second] {
        let code = link
            .strip_prefix(&format!("http://{listen}/dashboard/sign-in/link?code="))
            .expect("a link");
        let follow = || {
            let call = crate::support::Call::new(server.address, "POST", "/dashboard/sign-in/link");
            call.header("sec-fetch-site", "same-origin")
                .form(&format!("code={code}"))
        };
        assert_eq!(
            (follow().await.status, follow().await.status),
            (303, 403),
            "a link works once"
        );
    }
    tollkey
        .run(&["dashboard-link", "--listen", "127.0.0.1:1"])
        .await
        .assert_rejected(&["no server responds at http://127.0.0.1:1"]);
    tollkey
        .run(&["dashboard-link"])
        .await
        .assert_rejected(&["--listen"]);
    // Another database has another secret.
    let other_server = Tollkey::development();
    other_server.serve().await.stop().await;
    other_server
        .run(&command)
        .await
        .assert_rejected(&["does not accept the link"]);
    let with_secret = tollkey.clone().with("TOLLKEY_JWT_HS256_SECRET", SECRET);
    with_secret
        .run(&command)
        .await
        .assert_rejected(&["sign-in links are for development mode only"]);
}

#[actix_web::test]
async fn start_up_summary_is_one_line_of_the_log() {
    for database in backends() {
        let server = Tollkey::on(&database)
            .with("TOLLKEY_LOG_FORMAT", "json")
            .serve()
            .await;
        let address = server.address.to_string();
        let log = server.stop().await.stderr;
        let mut lines = log
            .lines()
            .filter(|line| line.contains("\"server started\""));
        let line: serde_json::Value =
            serde_json::from_str(lines.next().expect("a summary")).expect("JSON");
        assert!(lines.next().is_none(), "one line");
        for (name, value) in [
            ("level", json!("INFO")),
            ("version", json!(env!("CARGO_PKG_VERSION"))),
            ("listen", json!(address)),
            ("metrics_listen", json!("off")),
            ("grpc_listen", json!("off")),
            ("token_source", json!("hs256_secret")),
            ("development_mode", json!(false)),
            ("oidc_issuer", json!("off")),
        ] {
            assert_eq!(line[name], value, "{name}: {line}");
        }
        let backend = if database.url().starts_with("sqlite") {
            "SQLite"
        } else {
            "PostgreSQL"
        };
        let target = line["database"].as_str().expect("a target");
        assert!(
            target.starts_with(&format!("{backend} database ")) && !target.contains('@'),
            "{line}"
        );
    }
}
