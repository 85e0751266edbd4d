-- Who is signed in to the dashboard. What the browser's cookie holds is not here, its SHA-256 is.
CREATE TABLE sessions (
    digest BLOB NOT NULL PRIMARY KEY CHECK (length(digest) = 32),
    -- An operator may not have chosen one yet.
    account_id TEXT NULL CHECK (length(account_id) BETWEEN 1 AND 128),
    subject TEXT NOT NULL,
    is_operator INTEGER NOT NULL CHECK (is_operator IN (0, 1)),
    created_at INTEGER NOT NULL,
    last_seen_at INTEGER NOT NULL,
    ends_at INTEGER NOT NULL,
    CHECK (is_operator = 1 OR account_id IS NOT NULL)
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_by_end ON sessions (ends_at);

-- The dashboard lists the keys of all families together.
CREATE INDEX api_keys_newest_first ON api_keys (account_id, created_at DESC, id DESC);
