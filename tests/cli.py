"""For tests of `llm huggingchat …`: running it, and what is done on the web page meanwhile."""

import json
from dataclasses import dataclass
from typing import Any

import curl_cffi
from chat_ui import ChatUI
from click.testing import Result
from helpers import COOKIES, LLAMA, failure, run

NO_ID = "f" * 24


def command(*arguments: str, input: str | bytes | None = None) -> Result:
    """`llm huggingchat …`, which succeeds."""
    result: Result = run("huggingchat", *arguments, input=input)
    return result


def refused(*arguments: str, input: str | bytes | None = None) -> str:
    """Why `llm huggingchat …` fails."""
    return failure("huggingchat", *arguments, input=input)


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

    def post(self, path: str, **body: Any) -> bytes:
        headers = {"Cookie": self.cookie, "Origin": self.chat.url.removesuffix("/chat")}
        reply = curl_cffi.post(self.chat.url + path, headers=headers, **body)
        reply.raise_for_status()
        return reply.content

    def begin(self, *texts: str, preprompt: str = "") -> str:
        """A new conversation with these questions, one after another: its id."""
        made = self.post("/conversation", json={"model": LLAMA, "preprompt": preprompt})
        id = str(json.loads(made)["conversationId"])
        for text in texts:
            self.say(id, text)
        return id

    def say(
        self, id: str, text: str, after: str | None = None, tools: bool = False, file: str = ""
    ) -> str:
        """A question after some message, or the last one: the answer's id."""
        data = {
            "inputs": text,
            "id": after or self.chat.messages(id)[-1]["id"],
            "selectedMcpServerNames": ["Web Search (Exa)"] if tools else [],
        }
        form = curl_cffi.CurlMime()
        form.addpart("data", data=json.dumps(data).encode())
        if file:
            name = "base64;note.txt"
            form.addpart("files", filename=name, content_type="text/plain", data=file.encode())
        self.post(f"/conversation/{id}", multipart=form)
        return str(self.chat.messages(id)[-1]["id"])

    def share(self, id: str) -> str:
        """A link with which everybody can read a conversation."""
        return f"{self.chat.url}/r/{json.loads(self.post(f'/conversation/{id}/share'))['shareId']}"
