-- Items that need nothing more.
delete from failures
where item_id in :item_ids
