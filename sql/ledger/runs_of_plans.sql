-- The runs that some plans are of; unknown where an earlier release recorded them.
select plan_id, dag, run
from recorded_plans
where plan_id in :plan_ids
  and dag is not null
