#!/bin/sh
# Runs once, when the volume is empty: one database and one owner for Dagster, one for MLflow. Neither can open the
# other's database. Who runs it may be no superuser, as nobody is in Cloud SQL; whoever gives a database away must belong
# to its owner there.
set -eu

create_database() {
    psql --username "$POSTGRES_USER" --dbname postgres --set ON_ERROR_STOP=1 \
        --set name="$1" --set password="$2" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
GRANT :"name" TO CURRENT_USER;
CREATE DATABASE :"name" OWNER :"name";
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
}

create_database dagster "$DAGSTER_POSTGRES_PASSWORD"
create_database mlflow "$MLFLOW_POSTGRES_PASSWORD"
