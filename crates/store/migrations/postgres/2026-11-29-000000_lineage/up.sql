-- The ancestors of every key that a key created: its parent at distance 1, the parent's parent at distance 2. A trigger
-- keeps it, so that a server of the release before, which does not know this table, fills it too. Keys that were revoked
-- before have no rows: nothing evaluates their ancestors any more.
CREATE TABLE key_ancestors (
    key_id BYTEA NOT NULL CHECK (length(key_id) = 16),
    ancestor_id BYTEA NOT NULL CHECK (length(ancestor_id) = 16),
    distance INTEGER NOT NULL CHECK (distance > 0),
    PRIMARY KEY (key_id, ancestor_id)
);
CREATE INDEX key_ancestors_by_ancestor ON key_ancestors (ancestor_id, key_id);

CREATE FUNCTION api_keys_record_ancestors() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO key_ancestors (key_id, ancestor_id, distance)
        SELECT NEW.id, ancestor_id, distance + 1 FROM key_ancestors WHERE key_id = NEW.created_by
        UNION ALL SELECT NEW.id, NEW.created_by, 1;
    RETURN NULL;
END $$;
-- This locks the table against writes until the migration commits, so that no key is inserted past the back-fill.
CREATE TRIGGER api_keys_record_ancestors AFTER INSERT ON api_keys
    FOR EACH ROW WHEN (NEW.created_by IS NOT NULL) EXECUTE FUNCTION api_keys_record_ancestors();

-- Below a revoked key: that key and the parent, whatever the depth. Nothing between them can change what the keys are.
INSERT INTO key_ancestors (key_id, ancestor_id, distance)
    WITH RECURSIVE below (key_id, root_id, distance) AS (
        SELECT keys.id, keys.created_by, 1
            FROM api_keys AS keys JOIN api_keys AS parents ON parents.id = keys.created_by
            WHERE keys.revoked_at IS NULL AND parents.revoked_at IS NOT NULL
        UNION ALL
        SELECT keys.id, below.root_id, below.distance + 1
            FROM below JOIN api_keys AS keys ON keys.created_by = below.key_id
            WHERE keys.revoked_at IS NULL
    )
    SELECT key_id, root_id, distance FROM below;
INSERT INTO key_ancestors (key_id, ancestor_id, distance)
    SELECT keys.id, keys.created_by, 1
        FROM key_ancestors AS below JOIN api_keys AS keys ON keys.id = below.key_id
        WHERE below.distance > 1;

-- All others: every ancestor.
INSERT INTO key_ancestors (key_id, ancestor_id, distance)
    WITH RECURSIVE lineage (key_id, ancestor_id, distance) AS (
        SELECT id, created_by, 1 FROM api_keys
            WHERE created_by IS NOT NULL AND revoked_at IS NULL
                AND NOT EXISTS (SELECT 1 FROM key_ancestors WHERE key_ancestors.key_id = api_keys.id)
        UNION ALL
        SELECT lineage.key_id, parents.created_by, lineage.distance + 1
            FROM lineage JOIN api_keys AS parents ON parents.id = lineage.ancestor_id
            WHERE parents.created_by IS NOT NULL
    )
    SELECT key_id, ancestor_id, distance FROM lineage;

-- Revocations that apply to many keys and are not recorded on all of them yet. The keys are rejected from the transaction
-- on that wrote the row; any replica records the rest, after a crash too. done_through is the last key that it reached.
CREATE TABLE pending_revocations (
    root_id BYTEA NOT NULL PRIMARY KEY CHECK (length(root_id) = 16),
    root_kind TEXT COLLATE "C" NOT NULL CHECK (root_kind IN ('api_key', 'application')),
    account_id TEXT COLLATE "C" NOT NULL,
    revoked_at BIGINT NOT NULL,
    actor_kind TEXT COLLATE "C" NOT NULL,
    actor_id TEXT NOT NULL,
    request_id TEXT NULL,
    ip TEXT NULL,
    done_through BYTEA NULL CHECK (length(done_through) = 16)
);
CREATE INDEX pending_revocations_by_account ON pending_revocations (account_id, revoked_at, root_id);

-- Revocations that the release before began and did not finish, with the actor that its audit log names.
INSERT INTO pending_revocations (root_id, root_kind, account_id, revoked_at, actor_kind, actor_id, request_id, ip)
    SELECT roots.id, 'api_key', roots.account_id, roots.revoked_at, coalesce(entries.actor_kind, 'cli'),
        coalesce(entries.actor_id, 'migrate'), entries.request_id, entries.ip
    FROM api_keys AS roots LEFT JOIN audit_log AS entries
        ON entries.account_id = roots.account_id AND entries.action = 'api_key.revoked'
            AND entries.target_id = encode(roots.id, 'hex')::uuid::text
    WHERE roots.revoked_at IS NOT NULL AND roots.family = 'secret'
        AND EXISTS (SELECT 1 FROM key_ancestors WHERE key_ancestors.ancestor_id = roots.id)
    ON CONFLICT (root_id) DO NOTHING;

-- The keys of an application that its deletion still has to reach, in the order in which it does.
CREATE INDEX api_keys_unrevoked_by_application ON api_keys (application_id, id)
    WHERE application_id IS NOT NULL AND revoked_at IS NULL;
