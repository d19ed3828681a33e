-- A ledger's tables, as the releases made them that kept no version; what is there already stays as it is.

-- One row an item that has no feature although it was tried: what a retry takes up, and what people see.
-- next_at is null where no schedule tries the item again; plan_id and planned_at are of the plan that wrote
-- the row last.
--
-- SQLite knows no timestamptz and keeps the times as the texts that it is given, UTC as
-- YYYY-MM-DD HH:MM:SS.ffffff, which sort as the times do.
create table if not exists failures (
    item_id text primary key,
    category_id text,
    img_url text,
    status text not null,
    reason text,
    attempts integer not null,
    first_at timestamptz not null,
    last_at timestamptz not null,
    next_at timestamptz,
    plan_id text not null,
    planned_at timestamptz not null
);

-- For those that are due.
create index if not exists failures_next_at on failures (next_at, item_id);

-- For page_by_last.sql. The filters' columns are in it, so that a filter which few rows match reads no others.
create index if not exists failures_last_at on failures (last_at, item_id, category_id, status);

-- For counting them.
create index if not exists failures_status on failures (status, next_at);

-- The plans whose outcomes are in the ledger, so that recording one again adds nothing.
create table if not exists recorded_plans (
    plan_id text primary key,
    planned_at timestamptz not null,
    recorded_at timestamptz not null
);

-- The scheduled nights that succeeded, from which the next one knows where to begin: one row a run of
-- Airflow's, with the interval that the schedule gave it.
create table if not exists covered_nights (
    dag text not null,
    run text not null,
    starts_at timestamptz not null,
    ends_at timestamptz not null,
    recorded_at timestamptz not null,
    primary key (dag, run)
);
