-- Times are microseconds since 1970, ids the 16 bytes of a UUID, texts that are keys or sorted by compare by byte.

CREATE TABLE accounts (
    id TEXT COLLATE "C" NOT NULL PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 128),
    operating_model TEXT COLLATE "C" NOT NULL
        CHECK (operating_model IN ('primary_merchant', 'platform', 'ecosystem', 'managed_ecosystem')),
    updated_at BIGINT NOT NULL
);

CREATE TABLE applications (
    id BYTEA NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    account_id TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    description TEXT NULL,
    is_enabled BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL,
    deleted_at BIGINT NULL,
    -- For the foreign key of api_keys: a key cannot belong to another account's application.
    CONSTRAINT applications_id_account_id_key UNIQUE (id, account_id)
);
CREATE UNIQUE INDEX applications_account_id_name_key ON applications (account_id, name) WHERE deleted_at IS NULL;
CREATE INDEX applications_newest_first ON applications (account_id, created_at DESC, id DESC);

CREATE TABLE api_keys (
    id BYTEA NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    digest BYTEA NOT NULL CHECK (length(digest) = 32),
    account_id TEXT COLLATE "C" NOT NULL,
    application_id BYTEA NULL,
    name TEXT NOT NULL,
    family TEXT COLLATE "C" NOT NULL CHECK (family IN ('commerce', 'application', 'secret', 'publishable')),
    mode TEXT COLLATE "C" NOT NULL CHECK (mode IN ('live', 'test')),
    prefix TEXT COLLATE "C" NOT NULL,
    last4 TEXT COLLATE "C" NOT NULL CHECK (length(last4) = 4),
    scopes TEXT COLLATE "C" NOT NULL,
    merchants TEXT NULL,
    features TEXT NULL,
    allowed_ips TEXT NULL,
    rate_limit_limit INTEGER NULL CHECK (rate_limit_limit > 0),
    rate_limit_window_seconds INTEGER NULL CHECK (rate_limit_window_seconds > 0),
    expires_at BIGINT NULL,
    metadata TEXT NULL,
    created_at BIGINT NOT NULL,
    created_by BYTEA NULL CHECK (length(created_by) = 16),
    last_used_at BIGINT NULL,
    suspended_at BIGINT NULL,
    revoked_at BIGINT NULL,
    revoked_reason TEXT NULL,
    rotated_from BYTEA NULL CHECK (length(rotated_from) = 16),
    rotated_to BYTEA NULL CHECK (length(rotated_to) = 16),
    CONSTRAINT api_keys_digest_key UNIQUE (digest),
    CONSTRAINT api_keys_application_fkey FOREIGN KEY (application_id, account_id)
        REFERENCES applications (id, account_id),
    CHECK ((family = 'application') = (application_id IS NOT NULL)),
    CHECK ((rate_limit_limit IS NULL) = (rate_limit_window_seconds IS NULL)),
    CHECK (revoked_reason IS NULL OR revoked_at IS NOT NULL)
);
CREATE INDEX api_keys_by_family ON api_keys (account_id, family, created_at DESC, id DESC);
CREATE INDEX api_keys_by_application ON api_keys (application_id, created_at DESC, id DESC);

CREATE TABLE key_usage (
    key_id BYTEA NOT NULL,
    day INTEGER NOT NULL,
    outcome TEXT COLLATE "C" NOT NULL,
    count BIGINT NOT NULL CHECK (count >= 0),
    PRIMARY KEY (key_id, day, outcome)
);
CREATE INDEX key_usage_by_day ON key_usage (day);

CREATE TABLE audit_log (
    account_id TEXT COLLATE "C" NOT NULL,
    seq BIGINT NOT NULL CHECK (seq > 0),
    id BYTEA NOT NULL CHECK (length(id) = 16),
    occurred_at BIGINT NOT NULL,
    action TEXT COLLATE "C" NOT NULL,
    actor_kind TEXT COLLATE "C" NOT NULL,
    actor_id TEXT NOT NULL,
    target_kind TEXT COLLATE "C" NOT NULL,
    target_id TEXT COLLATE "C" NOT NULL,
    target_mode TEXT COLLATE "C" NULL,
    request_id TEXT NULL,
    ip TEXT NULL,
    changes TEXT NOT NULL,
    hash BYTEA NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (account_id, seq),
    CONSTRAINT audit_log_id_key UNIQUE (id)
);
CREATE INDEX audit_log_by_action ON audit_log (account_id, action, seq DESC);
CREATE INDEX audit_log_by_target ON audit_log (account_id, target_id, seq DESC);
CREATE INDEX audit_log_by_time ON audit_log (account_id, occurred_at);

CREATE TABLE audit_heads (
    account_id TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    seq BIGINT NOT NULL CHECK (seq >= 0),
    hash BYTEA NOT NULL CHECK (length(hash) = 32)
);

CREATE TABLE service_keys (
    id BYTEA NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    name TEXT NOT NULL,
    digest BYTEA NOT NULL CHECK (length(digest) = 32),
    last4 TEXT COLLATE "C" NOT NULL CHECK (length(last4) = 4),
    created_at BIGINT NOT NULL,
    revoked_at BIGINT NULL,
    CONSTRAINT service_keys_digest_key UNIQUE (digest)
);

-- One row. Its lock makes the order of the counter the order of the commits.
CREATE TABLE change_counter (
    id INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    seq BIGINT NOT NULL CHECK (seq >= 0)
);
INSERT INTO change_counter (id, seq) VALUES (1, 0);

CREATE TABLE changes (
    seq BIGINT NOT NULL PRIMARY KEY,
    kind TEXT COLLATE "C" NOT NULL CHECK (kind IN ('key', 'application', 'account', 'service_key')),
    what TEXT COLLATE "C" NOT NULL
);

CREATE TABLE verifiers (
    id BYTEA NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    applied_seq BIGINT NOT NULL,
    renewals BIGINT NOT NULL
);

CREATE TABLE settings (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);
-- How long a verifier may answer from memory. Kept here so that replicas cannot disagree.
INSERT INTO settings (name, value) VALUES ('lease_ms', '3000');
