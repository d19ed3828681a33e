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
)
