-- For due.sql.
create index if not exists failures_next_at on failures (next_at, item_id)
