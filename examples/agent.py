"""An agent with two tools: LangChain's `create_agent`, which is a LangGraph graph.

    pip install 'enginekit[langchain]' langchain
    ENGINEKIT_ENGINE=ollama ENGINEKIT_MODEL=qwen3:8b python examples/agent.py
    ENGINEKIT_ENGINE=vllm ENGINEKIT_BASE_URL=http://gpu:8000 python examples/agent.py "…"

An agent's model decides by itself when to call what. This page is meant for models that are good at
that: Qwen3 8B or larger, Llama 3.1 8B Instruct or larger, Mistral Small 3, GPT-OSS 20B (vLLM needs
`--enable-auto-tool-choice --tool-call-parser …`). The 135M default model calls nothing by itself.
The project's own tests run this program on weights whose answers are written down, behind a real
server, so what they prove is the plumbing.
"""

from __future__ import annotations

import sys

from langchain.agents import create_agent
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.tools import tool

from enginekit.langchain import EngineKitChat

FORECASTS = {"oslo": "rain, 7 degrees", "rome": "sunny, 22 degrees", "cairo": "clear, 31 degrees"}
TRAINS = {"oslo": "10:10", "rome": "9:35"}


@tool
def get_weather(city: str) -> str:
    """Look up tomorrow's weather in a city."""
    return FORECASTS.get(city.lower(), f"no forecast for {city}")


@tool
def next_train(destination: str) -> str:
    """Look up when the next train to a city leaves."""
    return TRAINS.get(destination.lower(), f"no train goes to {destination}")


def main(question: str = "I travel to Oslo: what is the weather, and when is my train?") -> None:
    """Let the agent work and show each step as it happens."""
    model = EngineKitChat(temperature=0, max_tokens=400)
    agent = create_agent(model, [get_weather, next_train], system_prompt="Use the tools.")
    for step in agent.stream({"messages": [("human", question)]}, stream_mode="updates"):
        for update in step.values():
            for message in update["messages"]:
                if isinstance(message, AIMessage) and message.tool_calls:
                    for call in message.tool_calls:
                        print(f"calls:   {call['name']}({call['args']})")
                elif isinstance(message, ToolMessage):
                    print(f"result:  {message.name}: {message.text}")
                else:
                    print(f"answer:  {message.text}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
