-- When each key was last verified successfully. Apart from api_keys, whose rows are wide: usage is written often. A server
-- of the release before still writes api_keys.last_used_at, so readers take the newer of the two. The free space lets an
-- update stay on its page, without a new entry in the index.
CREATE TABLE key_last_used (
    key_id BYTEA NOT NULL PRIMARY KEY CHECK (length(key_id) = 16),
    last_used_at BIGINT NOT NULL
) WITH (fillfactor = 70);
