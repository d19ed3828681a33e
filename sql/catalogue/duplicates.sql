-- An item that a statement gives more than once, asked of the database before the statement's rows are read:
-- {statement} stands for the shop's own, such as changed.sql.
--
-- Ours, for any shop. What /*! */ encloses is read by MariaDB and MySQL alone, to which a1 and A1 are one.
select item_id
from (
{statement}
) as given
group by item_id /*!, binary item_id */
having count(*) > 1
limit 1
