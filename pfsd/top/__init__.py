"""`pfs top`: a daemon as it works, on a terminal; from `stats` and `ps` alone, as any client could."""
