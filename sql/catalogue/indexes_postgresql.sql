-- The columns of each of the catalogue's indexes, to say when one that keeps planning fast is missing.
select substring(indexdef from '\((.*)') as definition
from pg_indexes
where tablename = 'items'
