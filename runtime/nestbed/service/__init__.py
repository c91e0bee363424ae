"""The gRPC edge: translate, delegate, and turn errors into statuses in one place."""
