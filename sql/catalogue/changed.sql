-- Items registered or changed in [:start, :end), for the nightly run: the later of the two times counts, so that
-- an item published on a schedule is found although it was changed before. A time that is null does not count.
--
-- A shop edits this file to its own tables. What must stay: the four columns and their names, one
-- row an item, the two bounds (UTC), and the order: items of one URL stand together, so that each
-- picture is fetched once. Each half of the condition reads the rows of one index. What /*! */ encloses is read
-- by MariaDB and MySQL alone, which else take URLs for one that differ in capital letters.
select item_id, item_name, category_id, img_url
from items
where (updated_at >= :start and updated_at < :end and (registered_at is null or registered_at < :end))
   or (registered_at >= :start and registered_at < :end and (updated_at is null or updated_at < :end))
order by /*! binary */ img_url, item_id
