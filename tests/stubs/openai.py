"""In place of OpenAI's client: llm imports it at each start, which takes longer than the rest."""
