-- The dashboard lists revoked and suspended keys by themselves. There are few of them: without these a page of them is
-- looked for among all keys of the account.
CREATE INDEX api_keys_revoked ON api_keys (account_id, created_at DESC, id DESC) WHERE revoked_at IS NOT NULL;
CREATE INDEX api_keys_suspended ON api_keys (account_id, created_at DESC, id DESC) WHERE suspended_at IS NOT NULL;
