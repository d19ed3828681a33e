-- How many failures of each status wait for a retry, and how many no schedule tries again.
select status, waiting, given_up
from failure_counts
where waiting > 0
   or given_up > 0
