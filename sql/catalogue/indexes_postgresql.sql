-- The catalogue's indexes, to say when one that keeps planning fast is missing.
select indexdef as definition
from pg_indexes
where tablename = 'items'
