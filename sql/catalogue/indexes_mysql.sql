-- The columns of each of the catalogue's indexes, to say when one that keeps planning fast is missing.
select group_concat(column_name order by seq_in_index) as definition
from information_schema.statistics
where table_schema = database() and table_name = 'items'
group by index_name
