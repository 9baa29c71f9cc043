#!/bin/sh
# Run by the PostgreSQL image when its volume is empty: one role with one database for the scores,
# one for MLflow. Neither can read the other's. psql itself reads the passwords: they are on no
# command line.
for role in scores mlflow; do
  psql --username postgres --dbname postgres --no-psqlrc --quiet \
    --set=ON_ERROR_STOP=1 --set="role=$role" <<'SQL' || exit 1
\set file /run/secrets/ :role _db_password
\set password `cat :file`
CREATE ROLE :"role" LOGIN PASSWORD :'password';
CREATE DATABASE :"role" OWNER :"role";
REVOKE ALL ON DATABASE :"role" FROM PUBLIC;
SQL
done
