"""`python -m bench.load`: measures any OpenAI- or Ollama-compatible chat server, alone or paired with another one.

Nothing here knows the service: it is a client. The order of the parts: prompts -> plan -> runner (http_client, wire)
-> measurement -> statistics, comparison, requirements -> terminal, report.
"""
