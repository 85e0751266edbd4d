//! A PostgreSQL role that does not own the tables, and tables that a connection cannot find.

use std::sync::Arc;

use tollkey_core::{Family, Seq, VerifierId};
use tollkey_store::{
    NotReady, OpenOptions, SchemaError, Store,
    testing::{Database, Postgres, RealClock},
};

use crate::{Actions as _, acme, draft, id, key, on, position};

/// Returns the GRANT statements in the documentation, which are for a role named `tollkey_server`.
fn grants() -> Vec<&'static str> {
    let page = include_str!("../../../../docs/deploying.md");
    let lines: Vec<_> = page
        .lines()
        .filter(|line| line.starts_with("GRANT "))
        .collect();
    assert_eq!(lines.len(), 7, "docs/deploying.md, \"Database roles\"");
    lines
}

/// Creates a migrated database in which the role has only the documented rights, without those that PUBLIC has by
/// default. Roles belong to the whole server, so each test uses a different one.
fn database(role: &str) -> Option<Database> {
    let database = Postgres::shared()?.database();
    database.sql(&format!("CREATE ROLE {role} LOGIN"));
    let _migrated = database.store();
    database.sql("REVOKE ALL ON SCHEMA public FROM PUBLIC; REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC");
    database.sql(&grants().join("\n").replace("tollkey_server", role));
    Some(database)
}

fn open(url: &str) -> Store {
    Store::open(OpenOptions::new(url), Arc::new(RealClock::default())).unwrap()
}

#[test]
fn role_with_the_documented_rights_can_serve() {
    let Some(database) = database("tollkey_serves") else {
        return;
    };
    on(&database, async |database| {
        let store = open(&database.url_as("tollkey_serves"));
        assert_eq!(store.check_schema(), Ok(()));
        assert_eq!(store.migrate(), Ok(()), "nothing to migrate");
        store.ready().await.unwrap();
        let mut created = key(1, &acme());
        store.add_key(&created).await.unwrap();
        store
            .add_key(&tollkey_core::ApiKey {
                created_by: Some(id(1)),
                ..key(2, &acme())
            })
            .await
            .unwrap();
        let _ = created.revoke(crate::at(9), None);
        store
            .save_key(&created)
            .await
            .unwrap()
            .change
            .expect("a change for verifiers");
        let audited = store
            .write(|tx| tx.account(&acme()).append(draft(1, &acme())).map(drop))
            .await;
        assert!(audited.is_ok());
        let verifier = VerifierId::from_bytes([1; 16]);
        assert!(
            store
                .renew(verifier, Seq(0), position(&store).await)
                .await
                .unwrap()
        );
        store.unregister(verifier).await.unwrap();
        assert_eq!(store.key(&acme(), id(1)).await, Some(created));
        assert!(
            store
                .read(|db| db.account(&acme()).key(&Family::ALL, &id(2)))
                .await
                .unwrap()
                .is_some()
        );
    });
}

#[test]
fn every_missing_right_is_named_at_start_and_by_readiness() {
    let Some(database) = database("tollkey_lacks") else {
        return;
    };
    let store = open(&database.url_as("tollkey_lacks"));
    let mut named = 0;
    for line in &grants()[1..] {
        let (rights, tables) = line
            .strip_prefix("GRANT ")
            .unwrap()
            .split_once(" ON ")
            .unwrap();
        let (tables, _) = tables.split_once(" TO ").unwrap();
        for (right, table) in rights
            .split(", ")
            .flat_map(|right| tables.split(", ").map(move |table| (right, table)))
        {
            database.sql(&format!("REVOKE {right} ON {table} FROM tollkey_lacks"));
            let missing = store.check_schema().unwrap_err();
            let expected = format!("the database role tollkey_lacks lacks {right} on {table};");
            assert!(missing.to_string().starts_with(&expected), "{missing}");
            assert!(
                missing.to_string().contains("docs/deploying.md"),
                "{missing}"
            );
            database.sql(&format!("GRANT {right} ON {table} TO tollkey_lacks"));
            named += 1;
        }
    }
    assert_eq!((named, store.check_schema()), (48, Ok(())));

    database.sql("REVOKE INSERT, DELETE ON sessions FROM tollkey_lacks; REVOKE SELECT ON settings FROM tollkey_lacks");
    let all = store.check_schema().unwrap_err();
    assert!(
        all.to_string()
            .contains("lacks INSERT, DELETE on sessions; SELECT on settings;"),
        "{all}"
    );
    on(&database, async |_| {
        assert_eq!(store.ready().await, Err(NotReady::Schema(all.clone())))
    });

    database.sql("REVOKE USAGE ON SCHEMA public FROM tollkey_lacks");
    let hidden = open(&database.url_as("tollkey_lacks"))
        .check_schema()
        .unwrap_err();
    assert!(
        hidden.to_string().contains("lacks USAGE on schema public"),
        "{hidden}"
    );
}

#[test]
fn row_level_security_that_would_hide_keys_is_reported() {
    let Some(database) = database("tollkey_filtered") else {
        return;
    };
    let store = open(&database.url_as("tollkey_filtered"));
    database.sql("ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY");
    let filtered = store.check_schema().unwrap_err();
    let expected = "lacks BYPASSRLS (a row-level security policy applies) on api_keys";
    assert!(filtered.to_string().contains(expected), "{filtered}");
    on(&database, async |_| {
        assert!(
            store
                .read(|db| db.account(&acme()).key(&Family::ALL, &id(1)))
                .await
                .is_err(),
            "a query must fail instead of hiding rows"
        );
    });
}

#[test]
fn migration_without_the_create_right_is_reported() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let database = postgres.database();
    database.sql("CREATE ROLE tollkey_creates LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC");
    let error = open(&database.url_as("tollkey_creates"))
        .migrate()
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("permission denied for schema public; migrate as the owner"),
        "{error}"
    );
    database.sql("GRANT CREATE ON SCHEMA public TO tollkey_creates");
    assert_eq!(open(&database.url_as("tollkey_creates")).migrate(), Ok(()));
}

#[test]
fn tables_outside_the_search_path_are_reported() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let database = postgres.database();
    database.sql("CREATE SCHEMA keys");
    let in_schema = format!("{}&options=-csearch_path%3Dkeys", database.url());
    open(&in_schema).migrate().unwrap();
    assert_eq!(open(&in_schema).check_schema(), Ok(()));
    let error = open(database.url()).check_schema().unwrap_err();
    assert!(
        matches!(&error, SchemaError::NotInSearchPath { schema, .. } if schema == "keys"),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .contains("in the schema keys, but search_path is \"$user\", public"),
        "{error}"
    );
}
