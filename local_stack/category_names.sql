-- The names of the local shop's categories; a shop of one's own has such a statement in sql/catalogue/.
select category_id, category_name
from categories
