//! Databases of earlier releases in `fixtures/` (see `fixtures/README.md`): each is loaded, migrated by this build and
//! verified. The last test enforces the rule for migrations that makes rolling upgrades safe.

mod fill;

use std::{
    fs,
    path::{Path, PathBuf},
};

use rand::{SeedableRng as _, rngs::StdRng};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tollkey_core::Timestamp;
use tollkey_service::Random;
use tollkey_store::{
    Backend,
    testing::{Database, backends},
};
use tollkey_verifier::testing::ManualClock;

use crate::{
    binary::Tollkey,
    support::{App, Call, TOKEN_SIGN_IN},
};

/// The last migration of release 0.1.0. Every later one only expands the schema.
const LAST_OF_0_1_0: &str = "2026-11-21-500000_keys_by_status";
/// Whether a verification evaluates the ancestors of a key. If so, [`FixtureKey::code_by_ancestors`] is expected.
const EVALUATES_ANCESTORS: bool = true;

/// A directory of the repository.
fn directory(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(name)
}

/// The entries of a directory, sorted.
fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut entries: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    entries.sort();
    entries
}

/// `keys.json` of a fixture: what its database contains, and the expected responses of this release.
#[derive(Serialize, Deserialize)]
struct Fixture {
    /// The release that filled the database.
    release: String,
    /// The time at which the expectations hold.
    opened_at: Timestamp,
    /// `TOLLKEY_JWT_HS256_SECRET` of the server that filled it: idempotency records and sessions depend on it.
    jwt_secret: String,
    accounts: Vec<FixtureAccount>,
    keys: Vec<FixtureKey>,
    service_keys: Vec<FixtureServiceKey>,
    idempotency_record: FixtureRecord,
    sessions: Vec<FixtureSession>,
}

#[derive(Serialize, Deserialize)]
struct FixtureAccount {
    id: String,
    /// The lists of a management token of the account and how many rows each has.
    lists: Vec<(String, usize)>,
    /// The hash of the newest entry of its audit log.
    audit_head: String,
}

#[derive(Serialize, Deserialize)]
struct FixtureKey {
    name: String,
    account: String,
    /// Family and mode, the prefix of the key: `ck_live`. The 32 characters after `_` are all this letter.
    kind: String,
    letter: char,
    id: String,
    /// The name of the key that created it.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<String>,
    /// The body of `POST /verify`, without the key.
    verify: Value,
    /// The code of the response according to the release that filled the database.
    code: String,
    /// The code if the ancestors of a key are evaluated, for descendants of a revoked key.
    #[serde(skip_serializing_if = "Option::is_none")]
    code_by_ancestors: Option<String>,
    /// `key` of the response if the key is valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    verified: Option<Value>,
    /// The list with the key, and its row there. Keys of a deleted application are in no list.
    #[serde(skip_serializing_if = "Option::is_none")]
    listed: Option<(String, Value)>,
}

impl FixtureKey {
    fn text(&self) -> String {
        format!("{}_{}", self.kind, self.letter.to_string().repeat(32))
    }

    fn expected_code(&self) -> &str {
        self.code_by_ancestors
            .as_deref()
            .filter(|_| EVALUATES_ANCESTORS)
            .unwrap_or(&self.code)
    }
}

#[derive(Serialize, Deserialize)]
struct FixtureServiceKey {
    id: String,
    /// The 32 characters after `tks_` are all this letter.
    letter: char,
    revoked: bool,
}

/// A request that created a commerce key, to be repeated.
#[derive(Serialize, Deserialize)]
struct FixtureRecord {
    account: String,
    idempotency_key: String,
    body: Value,
    /// The name of the key that it created.
    created: String,
}

#[derive(Serialize, Deserialize)]
struct FixtureSession {
    /// The 32 bytes of the cookie, in hexadecimal digits, are all this one.
    byte: u8,
    /// `None` for an operator who has not chosen an account yet.
    account: Option<String>,
}

/// The rows of a list, in any envelope.
fn rows(list: &Value) -> &Vec<Value> {
    let places = [list, &list["items"], &list["data"]];
    places
        .into_iter()
        .find_map(Value::as_array)
        .unwrap_or_else(|| panic!("no list: {list}"))
}

/// The row with this ID in a list.
fn row<'a>(list: &'a Value, id: &str) -> Option<&'a Value> {
    rows(list)
        .iter()
        .find(|row| row["key_id"] == id || row["id"] == id)
}

/// Asserts that an object has these fields with these values. Later releases may add fields.
fn assert_includes(what: &str, actual: &Value, expected: &Value) {
    for (name, value) in expected.as_object().expect("an object") {
        assert_eq!(&actual[name], value, "{what}: {name} of {actual}");
    }
}

/// The codes of these verifications, and the keys in the responses.
async fn verify(
    call: impl Fn(&str) -> Call,
    bearer: &str,
    requests: &[Value],
) -> Vec<(String, Option<Value>)> {
    let mut results = Vec::new();
    for requests in requests.chunks(100) {
        let reply = call("/verify/batch")
            .json(json!({"requests": requests}))
            .bearer(bearer)
            .await;
        assert_eq!(reply.status, 200, "{reply}");
        let code = |result: &Value| result["code"].as_str().expect("a code").to_owned();
        let json = reply.json();
        let of_chunk = json["results"].as_array().expect("results").iter();
        results.extend(of_chunk.map(|result| (code(result), result.get("key").cloned())));
    }
    results
}

impl Fixture {
    fn read(directory: &Path) -> Self {
        let json = fs::read_to_string(directory.join("keys.json")).expect("keys.json");
        serde_json::from_str(&json).expect("keys.json has the expected fields")
    }

    /// Starts this build on the database of the fixture, which migrates it.
    async fn start(&self, database: Database) -> App {
        let settings = [
            TOKEN_SIGN_IN,
            ("TOLLKEY_JWT_HS256_SECRET", self.jwt_secret.as_str()),
        ];
        let random = Random::new(StdRng::seed_from_u64(1));
        App::start_with(
            database,
            &settings,
            ManualClock::new(self.opened_at),
            random,
        )
        .await
    }

    fn requests(&self) -> Vec<Value> {
        let request = |key: &FixtureKey| {
            let mut request = key.verify.clone();
            request["key"] = json!(key.text());
            request
        };
        self.keys.iter().map(request).collect()
    }

    /// Asserts that the server of these calls verifies every key as expected.
    async fn assert_codes(&self, call: impl Fn(&str) -> Call, bearer: &str) {
        let results = verify(call, bearer, &self.requests()).await;
        for (key, (code, verified)) in self.keys.iter().zip(results) {
            assert_eq!(code, key.expected_code(), "{}", key.name);
            if code == "valid" {
                let expected = key.verified.as_ref().expect("the expected key");
                assert_includes(
                    &key.name,
                    &verified.expect("the key in the response"),
                    expected,
                );
            }
        }
    }

    /// Asserts that the management APIs still return every row unchanged.
    async fn assert_lists(&self, app: &App) {
        for account in &self.accounts {
            for (list, count) in &account.lists {
                let reply = app
                    .get(list)
                    .bearer(&app.management_token(&account.id))
                    .await;
                assert_eq!(reply.status, 200, "{list} of {}: {reply}", account.id);
                assert_eq!(
                    rows(&reply.json()).len(),
                    *count,
                    "{list} of {}",
                    account.id
                );
            }
        }
        for key in &self.keys {
            let Some((list, expected)) = &key.listed else {
                continue;
            };
            let token = app.management_token(&key.account);
            let reply = app.get(list).bearer(&token).await.json();
            let mut expected = expected.clone();
            if key.expected_code() != key.code {
                // A key is revoked with its ancestor, even if its row does not say so.
                let fields = expected.as_object_mut().expect("an object");
                fields.retain(|name, _| {
                    !matches!(name.as_str(), "revokedAt" | "revokedReason" | "status")
                });
            }
            assert_includes(
                &key.name,
                row(&reply, &key.id).unwrap_or_else(|| panic!("{} is not listed", key.name)),
                &expected,
            );
            if key.kind.starts_with("ck") {
                let reply = app
                    .get(&format!("/api-keys/{}", key.id))
                    .bearer(&token)
                    .await;
                assert_eq!(reply.status, 200, "{}: {reply}", key.name);
                assert_includes(&key.name, &reply.json(), &expected);
            }
        }
    }

    async fn assert_service_keys(&self, app: &App) {
        for key in &self.service_keys {
            let text = format!("tks_{}", key.letter.to_string().repeat(32));
            let requests = self.requests();
            let reply = app.post("/verify", requests[0].clone()).bearer(&text).await;
            assert_eq!(
                reply.status,
                if key.revoked { 401 } else { 200 },
                "{}: {reply}",
                key.id
            );
        }
    }

    /// The repeat of a request returns the first response, full key included.
    async fn assert_idempotency_record(&self, app: &App) {
        let record = &self.idempotency_record;
        let repeat = app
            .post("/api-keys", record.body.clone())
            .bearer(&app.management_token(&record.account));
        let reply = repeat
            .header("idempotency-key", &record.idempotency_key)
            .await;
        assert_eq!(
            (reply.status, reply.header("idempotent-replayed")),
            (201, Some("true")),
            "{reply}"
        );
        let created = self
            .keys
            .iter()
            .find(|key| key.name == record.created)
            .expect("the key exists");
        assert_eq!(reply.json()["api_key"], created.text(), "{reply}");
    }

    /// Asserts that the dashboard accepts every session cookie, and redirects a request without one.
    async fn assert_sessions(&self, app: &App) {
        for session in &self.sessions {
            let cookie = format!(
                "__Host-tollkey_session={}",
                format!("{:02x}", session.byte).repeat(32)
            );
            // An operator without an account only has the page to choose one.
            let path = if session.account.is_some() {
                "/dashboard/keys"
            } else {
                "/dashboard/account"
            };
            let page = app.get(path).header("cookie", cookie).await;
            assert_eq!(page.status, 200, "session {}: {page}", session.byte);
        }
    }
}

/// Loads the database of a fixture into an empty database.
fn load(directory: &Path, database: &Database) {
    let file = format!("{}.sql", database.backend().as_str());
    database.sql(&fs::read_to_string(directory.join(file)).expect("the script of the database"));
}

#[actix_web::test]
async fn databases_of_earlier_releases_are_migrated_and_verified() {
    for directory in entries(&directory("fixtures"))
        .into_iter()
        .filter(|entry| entry.is_dir())
    {
        let fixture = Fixture::read(&directory);
        for database in backends() {
            eprintln!(
                "release {} on {}",
                fixture.release,
                database.backend().as_str()
            );
            load(&directory, &database);
            let app = fixture.start(database).await;
            app.running()
                .state()
                .service
                .store
                .check_schema()
                .expect("the schema of this build");
            fixture.assert_lists(&app).await;
            fixture
                .assert_codes(|path| app.call("POST", path), &app.service())
                .await;
            fixture.assert_service_keys(&app).await;
            fixture.assert_idempotency_record(&app).await;
            fixture.assert_sessions(&app).await;

            let replica = app.replica().await;
            fixture
                .assert_codes(
                    |path| Call::new(replica.address(), "POST", path),
                    &app.service(),
                )
                .await;
            replica.stop().await;

            let heads = fixture
                .accounts
                .iter()
                .flat_map(|account| ["--head", account.audit_head.as_str()]);
            let verify: Vec<&str> = ["audit", "verify"].into_iter().chain(heads).collect();
            Tollkey::on(&app.database).output_of(&verify).await;
            app.stop().await;
        }
    }
}

#[actix_web::test]
async fn key_creation_continues_on_a_migrated_database() {
    for directory in entries(&directory("fixtures"))
        .into_iter()
        .filter(|entry| entry.is_dir())
    {
        let fixture = Fixture::read(&directory);
        for database in backends() {
            load(&directory, &database);
            let app = fixture.start(database).await;
            let token = app.management_token("acme");
            let created = app
                .commerce_key(&token, json!({"name": "Created after the migration"}))
                .await;
            assert_eq!(app.code(&created.text).await, "valid");
            let valid = fixture
                .keys
                .iter()
                .find(|key| key.account == "acme" && key.name == "Commerce live");
            let valid = valid.expect("the key exists");
            let revoke = app
                .post(&format!("/api-keys/{}/revoke", valid.id), json!({}))
                .bearer(&token)
                .await;
            assert_eq!(revoke.status, 200, "{revoke}");
            assert_eq!(app.code(&valid.text()).await, "revoked");
            app.stop().await;
        }
    }
}

/// The statements of a script without comments, each on one line in capitals.
fn statements(script: &str) -> Vec<String> {
    let code: String = script
        .lines()
        .map(|line| line.split("--").next().unwrap_or_default().to_owned() + "\n")
        .collect();
    let one_line = |statement: &str| {
        statement
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
            .to_uppercase()
    };
    code.split(';')
        .map(one_line)
        .filter(|statement| !statement.is_empty())
        .collect()
}

/// Returns what a statement breaks for a server of the previous release, which still runs on the schema.
fn contraction(statement: &str) -> Option<&'static str> {
    let is_word = |word: &str| {
        statement
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .any(|it| it == word)
    };
    if is_word("DROP") {
        return Some("DROP");
    }
    if is_word("RENAME") {
        return Some("RENAME");
    }
    let clauses = statement.strip_prefix("ALTER TABLE ")?;
    let mut columns = clauses.split(" ADD COLUMN ").skip(1).peekable();
    if columns.peek().is_none() {
        return Some("an ALTER TABLE without ADD COLUMN");
    }
    let is_required = |column: &str| column.contains(" NOT NULL") && !column.contains(" DEFAULT ");
    columns
        .any(is_required)
        .then_some("a NOT NULL column without DEFAULT")
}

#[test]
fn statements_that_contract_a_schema_are_recognized() {
    for (script, expected) in [
        (
            "CREATE TABLE t (a TEXT NOT NULL); -- DROP TABLE u;\nCREATE INDEX dropped ON t (a);",
            None,
        ),
        (
            "ALTER TABLE t ADD COLUMN a TEXT;\nALTER TABLE t\n  ADD COLUMN b INTEGER NOT NULL\n  DEFAULT 0;",
            None,
        ),
        ("INSERT INTO t SELECT a FROM u WHERE b IS NOT NULL", None),
        ("create table t (a text); drop table u", Some("DROP")),
        ("ALTER TABLE t DROP COLUMN a", Some("DROP")),
        ("ALTER TABLE t RENAME TO u", Some("RENAME")),
        (
            "ALTER TABLE t ADD COLUMN a TEXT NOT NULL",
            Some("a NOT NULL column without DEFAULT"),
        ),
        (
            "ALTER TABLE t ADD COLUMN a TEXT NOT NULL DEFAULT '', ADD COLUMN b TEXT NOT NULL",
            Some("a NOT NULL column without DEFAULT"),
        ),
        (
            "ALTER TABLE t ALTER COLUMN a SET NOT NULL",
            Some("an ALTER TABLE without ADD COLUMN"),
        ),
        (
            "ALTER TABLE t ADD CONSTRAINT c CHECK (a > 0)",
            Some("an ALTER TABLE without ADD COLUMN"),
        ),
    ] {
        assert_eq!(
            statements(script)
                .iter()
                .find_map(|statement| contraction(statement)),
            expected,
            "{script}"
        );
    }
}

#[test]
fn migrations_after_0_1_0_only_expand_the_schema() {
    for backend in [Backend::Sqlite, Backend::Postgres] {
        let migrations = entries(&directory("crates/store/migrations").join(backend.as_str()));
        let name = |path: &Path| {
            path.file_name()
                .and_then(|name| name.to_str())
                .expect("a name")
                .to_owned()
        };
        assert!(migrations.iter().any(|path| name(path) == LAST_OF_0_1_0));
        for migration in migrations
            .iter()
            .filter(|path| name(path).as_str() > LAST_OF_0_1_0)
        {
            let file = migration.join("up.sql");
            for statement in statements(&fs::read_to_string(&file).expect("up.sql")) {
                let contraction = contraction(&statement);
                assert_eq!(
                    contraction,
                    None,
                    "{} must only expand the schema: {statement}",
                    file.display()
                );
            }
        }
    }
}
