#!/bin/sh
# Makes the three databases and their owners. The postgres image runs it once, on an empty data folder; running it again
# changes passwords only. Elsewhere: PGHOST, PGUSER and PGPASSWORD name a superuser, the other variables the passwords.
set -eu
PGUSER="${POSTGRES_USER:-${PGUSER:-postgres}}"
export PGUSER

for name in catalog prefect mlflow; do
    variable="$(printf %s "$name" | tr '[:lower:]' '[:upper:]')_PASSWORD"
    # By standard input: no password in a process list. :'secret' is quoted by psql.
    eval "secret=\${$variable:?is not set}"
    psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --dbname=postgres <<SQL
\\set name $name
\\set secret '$secret'
SELECT format('CREATE ROLE %I LOGIN', :'name') WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = :'name') \\gexec
ALTER ROLE :"name" PASSWORD :'secret';
SELECT format('CREATE DATABASE %I OWNER %I', :'name', :'name')
    WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'name') \\gexec
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
# Prefect searches names by trigrams, and an owner may not be allowed to add the extension.
psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --dbname=prefect --command='CREATE EXTENSION IF NOT EXISTS pg_trgm'
