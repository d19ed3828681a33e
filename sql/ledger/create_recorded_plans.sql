-- The plans whose outcomes are in the ledger, so that recording one again adds nothing.
create table if not exists recorded_plans (
    plan_id text primary key,
    planned_at timestamptz not null,
    recorded_at timestamptz not null
)
