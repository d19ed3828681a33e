"""A shop on one machine: catalogue, pictures, image server, Elasticsearch, Airflow."""
