"""Stage `states`: pooled hidden states of every decoder layer, in HDF5."""
