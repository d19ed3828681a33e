-- The first statements of a recording: one at a time, each seeing all of those before it.
set transaction isolation level read committed;
set local lock_timeout = '60s';
select pg_advisory_xact_lock(hashtextextended('feature_ledger', 0))
