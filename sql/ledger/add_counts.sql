-- Adds to a status's counts what a recording changed, which may be less than nothing.
insert into failure_counts (status, waiting, given_up)
values (:status, :waiting, :given_up)
on conflict (status) do update set
    waiting = failure_counts.waiting + excluded.waiting,
    given_up = failure_counts.given_up + excluded.given_up
