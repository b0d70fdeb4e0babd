"""What a web process imports: the app, its tasks and the results of their calls."""
