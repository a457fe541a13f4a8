#!/bin/sh
# Makes the three databases, their owners and the catalog's users. The postgres image runs it once, on an empty data folder; running it
# again makes what is missing and sets passwords. Elsewhere: PGHOST, PGUSER and PGPASSWORD name a superuser, the other variables the
# passwords.
set -eu
PGUSER="${POSTGRES_USER:-${PGUSER:-postgres}}"
export PGUSER

# make_user NAME VARIABLE, what else is to be run by standard input; sees them as :name and :secret.
make_user() {
    eval "secret=\${$2:?is not set}"
    # By standard input: no password in a process list. :'secret' is quoted by psql.
    psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --dbname=postgres <<SQL
\\set name $1
\\set secret '$secret'
SELECT format('CREATE ROLE %I', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \\gexec
ALTER ROLE :"name" LOGIN PASSWORD :'secret';
$(cat)
SQL
}

for name in catalog prefect mlflow; do
    make_user "$name" "$(printf %s "$name" | tr '[:lower:]' '[:upper:]')_PASSWORD" <<'SQL'
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \gexec
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
# What they may do in it is the catalog's own affair: `cartridge catalog roles --apply`.
for role in flows serving operator; do
    make_user "cartridge-$role" "CATALOG_$(printf %s "$role" | tr '[:lower:]' '[:upper:]')_PASSWORD" <<'SQL'
GRANT CONNECT ON DATABASE catalog TO :"name";
SQL
done
# Prefect searches names by trigrams, and an owner may not be allowed to add the extension.
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --dbname=prefect --command='CREATE EXTENSION IF NOT EXISTS pg_trgm'
