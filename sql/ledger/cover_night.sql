-- Notes that a night succeeded, in the place of what was noted of the same run before.
insert into covered_nights (dag, run, starts_at, ends_at, recorded_at)
values (:dag, :run, :starts_at, :ends_at, :now)
on conflict (dag, run) do update set
    starts_at = excluded.starts_at,
    ends_at = excluded.ends_at,
    recorded_at = excluded.recorded_at
