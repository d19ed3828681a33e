-- The failures that match every filter that is given, those of one URL together, a page at a time.
select
    item_id, category_id, img_url, status, reason, attempts, first_at, last_at, next_at, plan_id, planned_at
from failures
where (coalesce(img_url, ''), item_id) > (:after_img_url, :after_item_id)
  and category_id in :category_ids -- optional
  and status in :statuses -- optional
  and item_id in :item_ids -- optional
order by coalesce(img_url, ''), item_id
limit :at_most
