-- When a key got its successor.
ALTER TABLE api_keys ADD COLUMN rotated_at INTEGER NULL;

-- What a key made is revoked with it.
CREATE INDEX api_keys_by_maker ON api_keys (created_by) WHERE created_by IS NOT NULL;

-- Answers to requests that had an Idempotency-Key. The id is a hash of that key and of whose it is; without the key
-- and a secret that is not in the database, what is sealed stays shut.
CREATE TABLE kept_answers (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 32),
    fingerprint BLOB NOT NULL CHECK (length(fingerprint) = 32),
    sealed BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX kept_answers_by_time ON kept_answers (created_at);

-- A test key reads the entries about test keys, which may be few among many.
CREATE INDEX audit_log_by_mode ON audit_log (account_id, target_mode, seq DESC);
-- What did that key do?
CREATE INDEX audit_log_by_actor ON audit_log (account_id, actor_id, seq DESC);
