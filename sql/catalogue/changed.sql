-- Items registered or changed in [:start, :end), for the nightly run.
--
-- A shop edits this file to its own tables. What must stay: the four columns and their names, one
-- row an item, the two bounds (UTC), and the order: items of one URL stand together, so that each
-- picture is fetched once.
select item_id, item_name, category_id, img_url
from items
where coalesce(updated_at, registered_at) >= :start
  and coalesce(updated_at, registered_at) < :end
order by img_url, item_id
