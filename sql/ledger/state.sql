-- The ledger's version, and when the given-up failures were last looked through.
select version, swept_at
from ledger_state
