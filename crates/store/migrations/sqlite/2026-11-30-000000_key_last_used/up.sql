-- When each key was last verified successfully. Apart from api_keys, whose rows are wide: usage is written often. A server
-- of the release before still writes api_keys.last_used_at, so readers take the newer of the two.
CREATE TABLE key_last_used (
    key_id BLOB NOT NULL PRIMARY KEY CHECK (length(key_id) = 16),
    last_used_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
