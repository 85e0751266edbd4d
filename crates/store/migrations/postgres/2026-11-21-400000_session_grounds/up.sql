-- What a session rests on: a digest of the way in and of the settings that let somebody in by it. The default rests on
-- nothing: sessions that were there, and those that a server of the release before begins meanwhile, hold on such servers alone.
ALTER TABLE sessions ADD COLUMN grounds BYTEA NOT NULL
    DEFAULT '\x0000000000000000000000000000000000000000000000000000000000000000' CHECK (length(grounds) = 32);
