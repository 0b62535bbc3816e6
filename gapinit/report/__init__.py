"""Stage `report`: the page, the reference result, README's headline."""
