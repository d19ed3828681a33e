-- The URLs that some items have now, to tell an item that moved on from a document that is late.
select item_id, img_url
from items
where item_id in :item_ids
