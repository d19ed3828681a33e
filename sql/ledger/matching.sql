-- The failures that match every filter that is given, those of one URL together, a page at a time.
select item_id, category_id, img_url, status, reason, attempts, first_at, last_at, next_at, planned_at
from failures
where (:any_category or category_id in :category_ids)
  and (:any_status or status in :statuses)
  and (:any_item or item_id in :item_ids)
  and (coalesce(img_url, ''), item_id) > (:after_img_url, :after_item_id)
order by coalesce(img_url, ''), item_id
limit :at_most
