-- The catalogue's indexes, to say when one that keeps planning fast is missing.
select sql as definition
from sqlite_master
where type = 'index' and tbl_name = 'items' and sql is not null
