-- A page of the failures that match every filter that is given, the last to fail first, after the one that
-- the page before ended with.
select
    item_id, category_id, img_url, status, reason, attempts, first_at, last_at, next_at, plan_id, planned_at
from failures
where (last_at, item_id) < (:after_last_at, :after_item_id)
  and category_id = :category_id -- optional
  and status = :status -- optional
  and item_id = :item_id -- optional
order by last_at desc, item_id desc
limit :at_most
