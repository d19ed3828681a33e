"""What the runs do: plain Python, one module per stage, no Airflow import."""
