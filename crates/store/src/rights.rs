//! Checks whether a PostgreSQL role has the rights on the tables that the server needs.
//!
//! docs/deploying.md has the same list as `GRANT` statements, for a role that does not own the tables.

use diesel::{
    OptionalExtension as _, PgConnection, QueryableByName, RunQueryDsl as _, sql_query,
    sql_types::{Bool, Text},
};

use crate::schema_error::SchemaError;

/// The rights that the server needs on each table. `FOR UPDATE` and `FOR SHARE` need UPDATE.
const RIGHTS: [(&str, &str); 17] = [
    ("__diesel_schema_migrations", "SELECT"),
    ("accounts", "SELECT, INSERT, UPDATE"),
    ("api_keys", "SELECT, INSERT, UPDATE"),
    ("applications", "SELECT, INSERT, UPDATE"),
    ("audit_heads", "SELECT, INSERT, UPDATE"),
    ("audit_log", "SELECT, INSERT"),
    ("change_counter", "SELECT, UPDATE"),
    ("changes", "SELECT, INSERT, DELETE"),
    ("kept_answers", "SELECT, INSERT, DELETE"),
    ("key_ancestors", "SELECT, INSERT"),
    ("key_last_used", "SELECT, INSERT, UPDATE"),
    ("key_usage", "SELECT, INSERT, UPDATE, DELETE"),
    ("pending_revocations", "SELECT, INSERT, UPDATE, DELETE"),
    ("service_keys", "SELECT, INSERT, UPDATE"),
    ("sessions", "SELECT, INSERT, UPDATE, DELETE"),
    ("settings", "SELECT"),
    ("verifiers", "SELECT, INSERT, UPDATE, DELETE"),
];

/// Returns the tables that the server writes.
pub(crate) fn written_tables() -> impl Iterator<Item = &'static str> {
    RIGHTS
        .into_iter()
        .filter(|(_, rights)| *rights != "SELECT")
        .map(|(table, _)| table)
}

/// The table that shows that a schema contains Tollkey's tables.
const IDENTIFYING_TABLE: &str = "change_counter";

#[derive(QueryableByName)]
struct MissingRights {
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Text)]
    rights: String,
    #[diesel(sql_type = Text)]
    relation: String,
}

/// Returns an error that lists all missing rights of the role, and the tables on which a row-level security policy
/// applies to it. Ignores tables that do not exist: [`crate::migrations::check`] reports them.
pub(crate) fn check(conn: &mut PgConnection) -> Result<(), SchemaError> {
    let needed: Vec<String> = RIGHTS
        .iter()
        .flat_map(|(table, rights)| {
            rights
                .split(", ")
                .map(move |right| format!("('{table}', '{right}')"))
        })
        .collect();
    let sql = format!(
        "WITH needed (relation, wanted) AS (VALUES {}), lacking (relation, wanted) AS ( \
         SELECT relation, wanted FROM needed WHERE NOT has_table_privilege(to_regclass(relation), wanted) \
         UNION ALL SELECT DISTINCT relation, 'BYPASSRLS (a row-level security policy applies)' \
         FROM needed JOIN pg_class ON pg_class.oid = to_regclass(relation) \
         WHERE relrowsecurity AND row_security_active(pg_class.oid)) \
         SELECT current_user::text AS role, string_agg(wanted, ', ') AS rights, relation FROM lacking \
         GROUP BY relation ORDER BY relation",
        needed.join(", ")
    );
    let lacking: Vec<MissingRights> = sql_query(sql)
        .load(conn)
        .map_err(|error| SchemaError::Store(error.into()))?;
    let Some(MissingRights { role, .. }) = lacking.first() else {
        return Ok(());
    };
    let missing: Vec<String> = lacking
        .iter()
        .map(
            |MissingRights {
                 rights, relation, ..
             }| format!("{rights} on {relation}"),
        )
        .collect();
    Err(SchemaError::Rights {
        role: role.clone(),
        missing: missing.join("; "),
    })
}

/// Tables of Tollkey in a schema that the connection does not use.
#[derive(QueryableByName)]
struct HiddenTables {
    #[diesel(sql_type = Text)]
    schema: String,
    #[diesel(sql_type = Text)]
    search_path: String,
    #[diesel(sql_type = Text)]
    role: String,
    #[diesel(sql_type = Bool)]
    is_usable: bool,
}

/// Looks for Tollkey's tables in other schemas. Returns the problem if they are in a schema that `search_path` does not
/// contain or that the role cannot use, and `None` if there are none.
pub(crate) fn find_hidden_tables(
    conn: &mut PgConnection,
) -> Result<Option<SchemaError>, SchemaError> {
    let sql = format!(
        "SELECT nspname::text AS schema, current_setting('search_path') AS search_path, current_user::text AS role, \
         has_schema_privilege(pg_namespace.oid, 'USAGE') AS is_usable \
         FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace \
         WHERE relname = '{IDENTIFYING_TABLE}' AND relkind IN ('r', 'p') AND to_regclass('{IDENTIFYING_TABLE}') IS NULL \
         ORDER BY nspname LIMIT 1"
    );
    let found: Option<HiddenTables> = sql_query(sql)
        .get_result(conn)
        .optional()
        .map_err(|error| SchemaError::Store(error.into()))?;
    Ok(found.map(
        |HiddenTables {
             schema,
             search_path,
             role,
             is_usable,
         }| match is_usable {
            true => SchemaError::NotInSearchPath {
                schema,
                search_path,
            },
            false => SchemaError::Rights {
                role,
                missing: format!("USAGE on schema {schema}"),
            },
        },
    ))
}

#[cfg(feature = "test-util")]
#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::testing::Database;

    /// Runs on SQLite only, because both backends have the same tables.
    #[test]
    fn every_table_is_in_the_list_of_rights() {
        let database = Database::sqlite();
        let _migrated = database.store();
        let columns = database.columns();
        let tables: BTreeSet<&str> = columns
            .iter()
            .filter_map(|name| name.split('.').next())
            .collect();
        assert_eq!(
            tables,
            RIGHTS
                .iter()
                .map(|(table, _)| *table)
                .collect::<BTreeSet<_>>()
        );
    }
}
