"""Is this installation sound? `relay doctor`, one file a thing; looking and judging are apart."""
