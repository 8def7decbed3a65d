"""For tests of `llm huggingchat …`: running it, and what is done on the web page meanwhile."""

from __future__ import annotations

import json
import urllib.request
from dataclasses import dataclass

from chat_ui import ChatUI
from click.testing import Result
from helpers import run

LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
NO_ID = "f" * 24
TOKEN = "t-ada-0123456789abcdef"
SESSION = "11111111-2222-4333-8444-555555555555"
COOKIES = f"hf-chat={SESSION}; token={TOKEN}"
SECRETS = (TOKEN, SESSION, "s-bob", "t-bob")


def command(*arguments: str, input: str | bytes | None = None) -> Result:
    """`llm huggingchat …`, which succeeds."""
    result: Result = run("huggingchat", *arguments, input=input)
    assert not any(secret in result.output for secret in SECRETS)
    return result


def refused(*arguments: str, input: str | bytes | None = None) -> str:
    """Why `llm huggingchat …` fails: one error of at most two lines, without a secret."""
    result = run("huggingchat", *arguments, input=input, status=1)
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert len(result.stderr.splitlines()) <= 2
    assert not any(secret in result.output for secret in SECRETS)
    return str(result.stderr)


def ask(*arguments: str) -> str:
    """`llm …`: an answer."""
    return str(run(*arguments).stdout)


def thread_of(result: Result, line: int = 0) -> str:
    """The thread that `import` names in a line."""
    return str(result.stdout.splitlines()[line].split()[0])


@dataclass
class Web:
    """The web page of one person: what is done there, llm does not know of."""

    chat: ChatUI
    cookie: str = COOKIES

    def call(self, path: str, body: bytes, kind: str = "application/json") -> bytes:
        headers = {"Cookie": self.cookie, "Content-Type": kind, "Origin": "http://127.0.0.1"}
        request = urllib.request.Request(self.chat.url + path, data=body, headers=headers)
        with urllib.request.urlopen(request) as reply:
            return bytes(reply.read())

    def begin(self, *texts: str, preprompt: str = "") -> str:
        """A new conversation with these questions, one after another: its id."""
        value = json.dumps({"model": LLAMA, "preprompt": preprompt})
        id = json.loads(self.call("/conversation", value.encode()))["conversationId"]
        for text in texts:
            self.say(id, text)
        return str(id)

    def say(
        self, id: str, text: str, after: str | None = None, tools: bool = False, file: str = ""
    ) -> str:
        """A question after some message, or the last one: the answer's id."""
        data = {
            "inputs": text,
            "id": after or self.chat.messages(id)[-1]["id"],
            "selectedMcpServerNames": ["Web Search (Exa)"] if tools else [],
        }
        parts = ['Content-Disposition: form-data; name="data"\r\n\r\n' + json.dumps(data)]
        if file:
            parts.append(
                'Content-Disposition: form-data; name="files"; filename="base64;note.txt"\r\n'
                f"Content-Type: text/plain\r\n\r\n{file}"
            )
        body = "".join(f"--x\r\n{part}\r\n" for part in parts) + "--x--\r\n"
        self.call(f"/conversation/{id}", body.encode(), "multipart/form-data; boundary=x")
        return str(self.chat.messages(id)[-1]["id"])

    def share(self, id: str) -> str:
        """A link with which everybody can read a conversation."""
        reply = json.loads(self.call(f"/conversation/{id}/share", b"{}"))
        return f"{self.chat.url}/r/{reply['shareId']}"
