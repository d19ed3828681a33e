-- For page_by_last.sql. The filters' columns are in it, so that a filter which few rows match reads no others.
create index if not exists failures_last_at on failures (last_at, item_id, category_id, status)
