"""How data selection affects later training stages. Plain arrays: the protocol is the verb `audit`."""
