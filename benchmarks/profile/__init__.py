"""Where each microsecond of a task goes: the worker by stage, Redis by command."""
