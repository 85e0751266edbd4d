#!/bin/sh
# Creates the database and its two roles: the owner, which migrates, and the one of the server. PostgreSQL's image runs this
# once, when it creates the data directory. psql reads the passwords itself, so no command line contains them.
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --username=postgres --dbname=postgres <<'SQL'
\set owner_password `cat /run/secrets/postgres/owner-password`
\set server_password `cat /run/secrets/postgres/server-password`
CREATE ROLE tollkey_owner LOGIN PASSWORD :'owner_password';
CREATE ROLE tollkey_server LOGIN PASSWORD :'server_password';
CREATE DATABASE tollkey OWNER tollkey_owner ENCODING 'UTF8' TEMPLATE template0;
SQL
