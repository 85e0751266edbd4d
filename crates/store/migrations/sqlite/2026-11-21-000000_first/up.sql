-- Times are microseconds since 1970, ids the 16 bytes of a UUID. Texts compare by byte, as everywhere in SQLite.

CREATE TABLE accounts (
    id TEXT NOT NULL PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 128),
    operating_model TEXT NOT NULL
        CHECK (operating_model IN ('primary_merchant', 'platform', 'ecosystem', 'managed_ecosystem')),
    updated_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE applications (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    account_id TEXT NOT NULL,
    name TEXT NOT NULL,
    description TEXT NULL,
    is_enabled INTEGER NOT NULL CHECK (is_enabled IN (0, 1)),
    created_at INTEGER NOT NULL,
    deleted_at INTEGER NULL,
    -- For the foreign key of api_keys: a key cannot belong to another account's application.
    CONSTRAINT applications_id_account_id_key UNIQUE (id, account_id)
) STRICT;
CREATE UNIQUE INDEX applications_account_id_name_key ON applications (account_id, name) WHERE deleted_at IS NULL;
CREATE INDEX applications_newest_first ON applications (account_id, created_at DESC, id DESC);

CREATE TABLE api_keys (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    account_id TEXT NOT NULL,
    application_id BLOB NULL,
    name TEXT NOT NULL,
    family TEXT NOT NULL CHECK (family IN ('commerce', 'application', 'secret', 'publishable')),
    mode TEXT NOT NULL CHECK (mode IN ('live', 'test')),
    prefix TEXT NOT NULL,
    last4 TEXT NOT NULL CHECK (length(last4) = 4),
    scopes TEXT NOT NULL,
    merchants TEXT NULL,
    features TEXT NULL,
    allowed_ips TEXT NULL,
    rate_limit_limit INTEGER NULL CHECK (rate_limit_limit > 0),
    rate_limit_window_seconds INTEGER NULL CHECK (rate_limit_window_seconds > 0),
    expires_at INTEGER NULL,
    metadata TEXT NULL,
    created_at INTEGER NOT NULL,
    created_by BLOB NULL CHECK (length(created_by) = 16),
    last_used_at INTEGER NULL,
    suspended_at INTEGER NULL,
    revoked_at INTEGER NULL,
    revoked_reason TEXT NULL,
    rotated_from BLOB NULL CHECK (length(rotated_from) = 16),
    rotated_to BLOB NULL CHECK (length(rotated_to) = 16),
    CONSTRAINT api_keys_digest_key UNIQUE (digest),
    CONSTRAINT api_keys_application_fkey FOREIGN KEY (application_id, account_id)
        REFERENCES applications (id, account_id),
    CHECK ((family = 'application') = (application_id IS NOT NULL)),
    CHECK ((rate_limit_limit IS NULL) = (rate_limit_window_seconds IS NULL)),
    CHECK (revoked_reason IS NULL OR revoked_at IS NOT NULL)
) STRICT;
CREATE INDEX api_keys_by_family ON api_keys (account_id, family, created_at DESC, id DESC);
CREATE INDEX api_keys_by_application ON api_keys (application_id, created_at DESC, id DESC);

CREATE TABLE key_usage (
    key_id BLOB NOT NULL,
    day INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    count INTEGER NOT NULL CHECK (count >= 0),
    PRIMARY KEY (key_id, day, outcome)
) STRICT, WITHOUT ROWID;
CREATE INDEX key_usage_by_day ON key_usage (day);

CREATE TABLE audit_log (
    account_id TEXT NOT NULL,
    seq INTEGER NOT NULL CHECK (seq > 0),
    id BLOB NOT NULL CHECK (length(id) = 16),
    occurred_at INTEGER NOT NULL,
    action TEXT NOT NULL,
    actor_kind TEXT NOT NULL,
    actor_id TEXT NOT NULL,
    target_kind TEXT NOT NULL,
    target_id TEXT NOT NULL,
    target_mode TEXT NULL,
    request_id TEXT NULL,
    ip TEXT NULL,
    changes TEXT NOT NULL,
    hash BLOB NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (account_id, seq),
    CONSTRAINT audit_log_id_key UNIQUE (id)
) STRICT, WITHOUT ROWID;
CREATE INDEX audit_log_by_action ON audit_log (account_id, action, seq DESC);
CREATE INDEX audit_log_by_target ON audit_log (account_id, target_id, seq DESC);
CREATE INDEX audit_log_by_time ON audit_log (account_id, occurred_at);

CREATE TABLE audit_heads (
    account_id TEXT NOT NULL PRIMARY KEY,
    seq INTEGER NOT NULL CHECK (seq >= 0),
    hash BLOB NOT NULL CHECK (length(hash) = 32)
) STRICT, WITHOUT ROWID;

CREATE TABLE service_keys (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    name TEXT NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    last4 TEXT NOT NULL CHECK (length(last4) = 4),
    created_at INTEGER NOT NULL,
    revoked_at INTEGER NULL,
    CONSTRAINT service_keys_digest_key UNIQUE (digest)
) STRICT;

-- One row. Raising it in the one write transaction there can be makes its order the order of the commits.
CREATE TABLE change_counter (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    seq INTEGER NOT NULL CHECK (seq >= 0)
) STRICT;
INSERT INTO change_counter (id, seq) VALUES (1, 0);

CREATE TABLE changes (
    seq INTEGER NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('key', 'application', 'account', 'service_key')),
    what TEXT NOT NULL
) STRICT;

CREATE TABLE verifiers (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    applied_seq INTEGER NOT NULL,
    renewals INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE settings (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
-- How long a verifier may answer from memory. Kept here so that replicas cannot disagree.
INSERT INTO settings (name, value) VALUES ('lease_ms', '3000');
