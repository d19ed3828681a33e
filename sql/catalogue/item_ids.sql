-- The ids alone of the rows that a statement gives: {statement} stands for the shop's own, such as changed.sql.
select item_id
from (
{statement}
) as given
