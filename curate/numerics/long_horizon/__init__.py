"""What a choice of data does to the stages that come after it. Plain arrays: the protocol is the verb `audit`."""
