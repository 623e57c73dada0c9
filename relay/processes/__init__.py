"""Child processes of `relay up`, the demo and the tests."""
