#!/bin/sh
# Creates the secrets of the services and the certificate of PostgreSQL, unless they exist. Runs as root in a container of
# PostgreSQL's image, with a volume for each service below /secrets.
set -eu
umask 077
postgres=/secrets/postgres migration=/secrets/migration tollkey=/secrets/tollkey grafana=/secrets/grafana

# A file appears only when it is complete.
replace() {
    cat >"$1.new"
    mv "$1.new" "$1"
}

create() {
    [ -s "$1" ] || openssl rand -hex 32 | replace "$1"
}

for role in superuser owner server; do
    create "$postgres/$role-password"
done
create "$tollkey/jwt-secret"
create "$tollkey/sealing-secret"
create "$grafana/admin-password"

# The certificate is its own certificate authority: only this key can prove to be `postgres`.
if [ ! -s "$postgres/server.crt" ]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -days 3650 -subj /CN=postgres \
        -addext subjectAltName=DNS:postgres -keyout "$postgres/server.key" -out "$postgres/server.crt.new"
    mv "$postgres/server.crt.new" "$postgres/server.crt"
fi

url() {
    printf 'postgres://%s:%s@postgres/tollkey?sslmode=verify-full&sslrootcert=/run/secrets/tollkey/ca.crt\n' \
        "tollkey_$1" "$(cat "$postgres/$1-password")"
}
url owner | replace "$migration/database-url"
url server | replace "$tollkey/database-url"
for directory in "$migration" "$tollkey"; do
    replace "$directory/ca.crt" <"$postgres/server.crt"
done

# The users of the images: postgres, Tollkey, Grafana.
chown -R postgres:postgres "$postgres"
chown -R 10001:10001 "$migration" "$tollkey"
chown -R 472:0 "$grafana"
