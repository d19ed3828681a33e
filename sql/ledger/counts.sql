-- How many failures of each status wait for a retry, and how many no schedule tries again.
select status, count(next_at) as waiting, count(*) - count(next_at) as given_up
from failures
group by status
