-- An item that a statement gives more than once, asked of the database before the statement's rows are read:
-- {statement} stands for the shop's own, such as changed.sql. Ours, for any shop.
--
-- Byte by byte: a collation may take a1 and A1 for one.
select item_id
from (
{statement}
) as given
where item_id is not null
group by item_id, binary item_id
having count(*) > 1
limit 1
