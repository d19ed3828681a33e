-- Run by psql once, at the server's first start, in Airflow's own database.
CREATE DATABASE ledger;
CREATE DATABASE catalog;

-- An empty catalogue, for a shop to fill or to replace by its own with AIRFLOW_CONN_SHOP_CATALOG.
\connect catalog
CREATE TABLE items (
    item_id text PRIMARY KEY,
    item_name text,
    category_id text,
    img_url text,
    registered_at timestamptz NOT NULL,
    updated_at timestamptz
);
CREATE INDEX items_updated_at ON items (updated_at);
CREATE INDEX items_registered_at ON items (registered_at);
CREATE INDEX items_category_id ON items (category_id);
