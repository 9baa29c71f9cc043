"""What drivers and nodes run in processes of their own."""
