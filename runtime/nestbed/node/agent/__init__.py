"""The node's agent: hears what programs in containers report, tells them things, lets them meet at barriers; docs/agent.md."""
