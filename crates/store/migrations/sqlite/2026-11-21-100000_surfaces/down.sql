DROP INDEX audit_log_by_actor;
DROP INDEX audit_log_by_mode;
DROP TABLE kept_answers;
DROP INDEX api_keys_by_maker;
ALTER TABLE api_keys DROP COLUMN rotated_at;
