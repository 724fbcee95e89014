"""`cromic-ds doctor`: whether a run can start here and on the hosts of a hostfile. Checks import heavy libraries themselves."""
