-- The failures to try again by :now, the longest due first, a page at a time; not those of some plans.
select
    item_id, category_id, img_url, status, reason, attempts, first_at, last_at, next_at, plan_id, planned_at
from failures
where next_at <= :now
  and (next_at, item_id) > (:after_next_at, :after_item_id)
  and plan_id not in :left_out
order by next_at, item_id
limit :at_most
