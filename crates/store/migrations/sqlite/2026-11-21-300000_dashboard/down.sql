DROP INDEX api_keys_newest_first;
DROP TABLE sessions;
