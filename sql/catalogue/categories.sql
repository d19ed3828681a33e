-- Items of some categories registered in [:start, :end), for the category backfill.
--
-- A shop edits this file to its own tables; what must stay is told in changed.sql.
select item_id, item_name, category_id, img_url
from items
where category_id in :category_ids
  and registered_at >= :start
  and registered_at < :end
order by /*! binary */ img_url, item_id
