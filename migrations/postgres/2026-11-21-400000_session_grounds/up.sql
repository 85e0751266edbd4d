-- What a session rests on: a digest of the way in and of the settings that let somebody in by it.
-- Whoever is signed in signs in again.
DELETE FROM sessions;
ALTER TABLE sessions ADD COLUMN grounds BYTEA NOT NULL CHECK (length(grounds) = 32);
