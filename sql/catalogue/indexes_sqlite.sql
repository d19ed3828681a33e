-- The columns of each of the catalogue's indexes, to say when one that keeps planning fast is missing.
select substr(sql, instr(sql, '(') + 1) as definition
from sqlite_master
where type = 'index' and tbl_name = 'items' and sql is not null
