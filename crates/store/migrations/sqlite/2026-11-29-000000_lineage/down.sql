DROP INDEX api_keys_unrevoked_by_application;
DROP TABLE pending_revocations;
DROP TRIGGER api_keys_record_ancestors;
DROP TABLE key_ancestors;
