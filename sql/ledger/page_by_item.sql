-- A page of the failures that match every filter that is given, by item, after the one that the page before
-- ended with.
select item_id, category_id, img_url, status, reason, attempts, first_at, last_at, next_at, planned_at
from failures
where (:any_category or category_id = :category_id)
  and (:any_status or status = :status)
  and (:any_item or item_id = :item_id)
  and item_id > :after_item_id
order by item_id
limit :at_most
