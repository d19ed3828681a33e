-- An item's new row, in the place of the one it had.
insert into failures (
    item_id, category_id, img_url, status, reason, attempts, first_at, last_at, next_at, plan_id, planned_at
)
values (
    :item_id, :category_id, :img_url, :status, :reason, :attempts, :first_at, :last_at, :next_at, :plan_id,
    :planned_at
)
on conflict (item_id) do update set
    category_id = excluded.category_id,
    img_url = excluded.img_url,
    status = excluded.status,
    reason = excluded.reason,
    attempts = excluded.attempts,
    first_at = excluded.first_at,
    last_at = excluded.last_at,
    next_at = excluded.next_at,
    plan_id = excluded.plan_id,
    planned_at = excluded.planned_at
