"""shimlanctl, the operator's command line; nothing here is imported by the plugins."""
