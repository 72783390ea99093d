"""How a role's weights and optimizer lie on the processes: whole, or in shards. See `whole.Unit`."""
