-- When each change was made, in microseconds since 1970: with the counter it tells whether a log that is read goes on
-- from the one that was read before, or is another one, of a database that was restored.
ALTER TABLE change_counter ADD COLUMN at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE changes ADD COLUMN at INTEGER NOT NULL DEFAULT 0;
