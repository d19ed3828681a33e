-- A page of the failures that match every filter that is given, by item, after the one that the page before
-- ended with.
select
    item_id, category_id, img_url, status, reason, attempts, first_at, last_at, next_at, plan_id, planned_at
from failures
where item_id > :after_item_id
  and category_id = :category_id -- optional
  and status = :status -- optional
  and item_id = :item_id -- optional
order by item_id
limit :at_most
