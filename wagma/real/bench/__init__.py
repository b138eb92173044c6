"""What runs on the ranks of `wagma bench collective|partial|idle`, and how such a job is started; `wagma.studies` makes figures of it."""
