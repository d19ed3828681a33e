-- The end of the last night that succeeded, of those that began before :before.
select max(ends_at) as ends_at
from covered_nights
where dag = :dag
  and starts_at < :before
