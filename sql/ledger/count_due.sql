-- How many failures there are to try again by :now, but for those of some plans.
select count(*)
from failures
where next_at <= :now
  and plan_id not in :left_out
