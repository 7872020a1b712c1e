"""Methods side by side: means over seeds, and which differences are more than noise."""
