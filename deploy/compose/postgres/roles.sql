-- Runs once, when the database is created: the owner of the tables, which migrates them, and the role of the server.
\set owner_password `cat /run/secrets/owner-password`
\set server_password `cat /run/secrets/server-password`
CREATE ROLE tollkey_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE tollkey_server LOGIN PASSWORD :'server_password';
-- Tollkey recognizes the English messages of PostgreSQL.
ALTER ROLE tollkey_owner SET lc_messages = 'C';
ALTER ROLE tollkey_server SET lc_messages = 'C';
ALTER DATABASE tollkey OWNER TO tollkey_owner;
