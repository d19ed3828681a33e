-- For counts.sql.
create index if not exists failures_status on failures (status, next_at)
