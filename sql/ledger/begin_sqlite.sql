-- The first statement of a recording: one at a time.
begin immediate
