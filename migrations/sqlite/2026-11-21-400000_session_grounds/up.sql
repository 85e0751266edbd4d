-- What a session rests on: a digest of the way in and of the settings that let somebody in by it.
-- Whoever is signed in signs in again. SQLite asks for
-- a default, which no grounds are.
DELETE FROM sessions;
ALTER TABLE sessions ADD COLUMN grounds BLOB NOT NULL DEFAULT (zeroblob(32)) CHECK (length(grounds) = 32);
