-- The rights of the server's role, as in docs/deploying.md#database-roles. The owner of the tables runs this after migrations.
GRANT USAGE ON SCHEMA public TO tollkey_server;
GRANT SELECT ON __diesel_schema_migrations, settings TO tollkey_server;
GRANT SELECT, INSERT ON audit_log, key_ancestors TO tollkey_server;
GRANT SELECT, UPDATE ON change_counter TO tollkey_server;
GRANT SELECT, INSERT, DELETE ON changes, kept_answers TO tollkey_server;
GRANT SELECT, INSERT, UPDATE ON accounts, api_keys, applications, audit_heads, key_last_used, service_keys TO tollkey_server;
GRANT SELECT, INSERT, UPDATE, DELETE ON key_usage, pending_revocations, sessions, verifiers TO tollkey_server;
