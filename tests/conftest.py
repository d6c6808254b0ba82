"""Being here, this file puts its folder on the import path: tests share `serving` and its neighbours."""
