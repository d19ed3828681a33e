-- An item that a statement gives more than once, asked of the database before the statement's rows are read:
-- {statement} stands for the shop's own, such as changed.sql. Ours, for any shop.
--
-- By its text, byte by byte: a column's type or collation may take a1 and A1 for one.
select cast(item_id as text) collate "C" as item_id
from (
{statement}
) as given
where item_id is not null
group by 1
having count(*) > 1
limit 1
