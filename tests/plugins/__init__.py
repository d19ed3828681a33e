"""A package, so that its tests share one Airflow, which ends with the last of them."""
