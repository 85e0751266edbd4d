//! Defaults of the PostgreSQL server, the database and the role that change how statements behave.

use std::sync::Arc;

use tollkey_store::{
    OpenError, OpenOptions, Store, UnsupportedServer,
    testing::{Database, Postgres, RealClock},
};

use crate::{Actions as _, acme, application, id, key, on};

fn open(database: &Database) -> Result<Store, OpenError> {
    Store::open(
        OpenOptions::new(database.url()),
        Arc::new(RealClock::default()),
    )
}

/// Sets a default of that database.
fn set(database: &Database, setting: &str) {
    database.sql(&format!(
        "DO $do$ BEGIN EXECUTE format('ALTER DATABASE %I SET ', current_database()) || $set${setting}$set$; END $do$"
    ));
}

#[test]
fn server_defaults_do_not_change_behavior() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    for setting in [
        "standard_conforming_strings = off",
        "backslash_quote = off",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_isolation = 'repeatable read'",
        "default_transaction_deferrable = on",
        "client_encoding = 'LATIN1'",
        "bytea_output = 'escape'",
        "transform_null_equals = on",
        "row_security = on",
        "timezone = 'Pacific/Auckland'",
        "datestyle = 'SQL, DMY'",
        "intervalstyle = 'sql_standard'",
        "synchronous_commit = off",
        "statement_timeout = 400",
        "statement_timeout = 1",
        "lock_timeout = 100",
        "idle_in_transaction_session_timeout = 100",
        "idle_session_timeout = 100",
        "extra_float_digits = -15",
        "plan_cache_mode = 'force_generic_plan'",
        "quote_all_identifiers = on",
    ] {
        let database = postgres.database();
        set(&database, setting);
        on(&database, async |database| {
            let store = open(database).unwrap();
            store
                .migrate()
                .unwrap_or_else(|error| panic!("{setting}: {error}"));
            store.check_schema().unwrap();
            let named = tollkey_core::Application {
                name: "日本 \\ ' é".into(),
                ..application(1, &acme())
            };
            store.add_application(&named).await.unwrap();
            store.add_key(&key(1, &acme())).await.unwrap();
            // Longer than the timeouts above.
            let written = store.write(|tx| {
                let locked = tx.account(&acme()).lock_application(&id(1))?;
                std::thread::sleep(std::time::Duration::from_millis(600));
                Ok::<_, tollkey_store::Error>(locked)
            });
            assert_eq!(written.await.unwrap().value, Some(named), "{setting}");
            store.ready().await.unwrap();
        });
    }
}

#[test]
fn database_that_is_not_utf8_is_rejected() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let options =
            format!("ENCODING '{encoding}' LOCALE 'C' LOCALE_PROVIDER libc TEMPLATE template0");
        let database = postgres.database_with(&options);
        let error = open(&database).unwrap_err();
        assert!(
            matches!(&error, OpenError::UnsupportedServer(UnsupportedServer::Encoding(found)) if found == encoding),
            "{error}"
        );
        for part in [
            encoding,
            "CREATE DATABASE tollkey ENCODING 'UTF8' TEMPLATE template0",
        ] {
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}

/// Without triggers the ancestors of keys would not be recorded.
#[test]
fn database_without_triggers_is_rejected() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let database = postgres.database();
    set(&database, "session_replication_role = replica");
    let error = open(&database).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::UnsupportedServer(UnsupportedServer::ReplicationRole(_))
        ),
        "{error}"
    );
    let database = postgres.database();
    set(&database, "session_replication_role = local");
    open(&database).unwrap();
}
