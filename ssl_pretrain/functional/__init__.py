"""Pure functions: masks, patches, losses, geometry, schedules."""
