-- Takes back that a night succeeded: it ran again and failed.
delete from covered_nights
where dag = :dag
  and run = :run
