-- The failures that no schedule tries again, a page at a time. All have the same next_at, which is in the order
-- so that PostgreSQL, too, reads them in that of the index.
select
    item_id, category_id, img_url, status, reason, attempts, first_at, last_at, next_at, plan_id, planned_at
from failures
where next_at is null
  and item_id > :after_item_id
order by next_at, item_id
limit :at_most
