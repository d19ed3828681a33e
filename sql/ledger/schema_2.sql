-- The version of the ledger, on which the next release's schema_<n>.sql goes on, and when the given-up failures
-- were last looked through: one row.
create table ledger_state (
    version integer not null,
    swept_at timestamptz
);

insert into ledger_state (version) values (2);

-- Whose the plans are: the run of a failure's plan may be at work again.
alter table recorded_plans add column dag text;

alter table recorded_plans add column run text;

-- For due.sql, count_due.sql and given_up.sql.
create index failures_due on failures (next_at, item_id, plan_id);

drop index failures_next_at;

-- For page_by_last.sql: without a filter, of a category and of a status; each has both filters' columns.
create index failures_last on failures (last_at, item_id);

create index failures_of_category on failures (category_id, last_at, item_id, status);

create index failures_of_status on failures (status, last_at, item_id, category_id);

-- For page_by_item.sql, likewise.
create index failures_of_category_by_item on failures (category_id, item_id, status);

create index failures_of_status_by_item on failures (status, item_id, category_id);

drop index failures_last_at;

drop index failures_status;

-- How many failures of each status there are: counting millions of them takes a page too long.
create table failure_counts (
    status text primary key,
    waiting integer not null,
    given_up integer not null
);

insert into failure_counts (status, waiting, given_up)
select status, count(next_at), count(*) - count(next_at)
from failures
group by status;
