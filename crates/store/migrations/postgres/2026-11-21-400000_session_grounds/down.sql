ALTER TABLE sessions DROP COLUMN grounds;
