DROP INDEX api_keys_suspended;
DROP INDEX api_keys_revoked;
