-- The rows that some items have, from which their next ones follow.
select item_id, img_url, status, reason, attempts, first_at, next_at, plan_id, planned_at
from failures
where item_id in :item_ids
