#!/bin/bash
# Makes Airflow's database what the services expect. Running it again changes nothing that is right.
set -euo pipefail

airflow db migrate
airflow pools import dags/pools.json
# Does nothing where the user exists, so a password changed in the UI stays.
airflow users create --role Admin \
    --username="$AIRFLOW_ADMIN_USERNAME" --password="$AIRFLOW_ADMIN_PASSWORD" --email="$AIRFLOW_ADMIN_EMAIL" \
    --firstname=Airflow --lastname=Admin
