"""Jobs that several processes or machines compute into one directory."""
