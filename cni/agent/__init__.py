"""The agent: the plugin's commands as a service, and a host that stays as wanted."""
