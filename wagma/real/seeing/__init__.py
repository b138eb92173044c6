"""What a run shows: what ranks note (`recorder`), what rank 0 sees of them while they run (`board`), and makes of it (`monitor`)."""
