-- The failures to try again by :now, those of one URL together, a page at a time.
select item_id, category_id, img_url, status, reason, attempts, first_at, last_at, next_at, planned_at
from failures
where next_at <= :now
  and (coalesce(img_url, ''), item_id) > (:after_img_url, :after_item_id)
order by coalesce(img_url, ''), item_id
limit :at_most
