-- The scheduled nights that succeeded, from which the next one knows where to begin: one row a run of
-- Airflow's, with the interval that the schedule gave it.
create table if not exists covered_nights (
    dag text not null,
    run text not null,
    starts_at timestamptz not null,
    ends_at timestamptz not null,
    recorded_at timestamptz not null,
    primary key (dag, run)
)
