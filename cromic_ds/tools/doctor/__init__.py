"""`cromic-ds doctor`: would a run start here, and on the hosts of a hostfile? Nothing heavy is imported before it is tried."""
