-- Notes when the given-up failures were looked through.
update ledger_state
set swept_at = :swept_at
