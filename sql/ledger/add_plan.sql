-- Notes that a plan is recorded; changes no row when it was before.
insert into recorded_plans (plan_id, planned_at, recorded_at, dag, run)
values (:plan_id, :planned_at, :now, :dag, :run)
on conflict do nothing
