"""A tool asks the person something: the question is shown, and answered on the web page."""

import pytest
from helpers import both, logged, meanwhile, page, run, sends, stored, wait_for

pytestmark = pytest.mark.usefixtures("quick")
ASK = ("-m", "hf-llama", "-o", "web_search", "true")
QUESTION = "Web Search (Exa): Which city do you mean?"
ROME = 'Let me ask.\n\nThe person said: accept {"city": "Rome"}'


@both
@pytest.mark.parametrize("words", ["", "[[cut=1]]", "[[cut=2]]", "[[stall=2]]"])
def test_answer_goes_on_once_the_question_is_answered_on_the_page(server, ask, caplog, words):
    """Also where the connection breaks around the question."""
    with meanwhile(ask, f"[[elicit]] {words}", web_search=True) as answer:
        wait_for(lambda: answer.done() or "Which city do you mean?" in caplog.text)
        server.reply(city="Rome")
        assert answer.result().text() == ROME
    assert caplog.text.count(page(server)) == 1
    assert len(sends(server)) == 1


@pytest.mark.parametrize("way", [(), ("--async",)], ids=" ".join)
def test_question_is_shown_on_the_command_line_with_its_page(server, way):
    with meanwhile(run, *ASK, *way, "[[elicit]]") as command:
        wait_for(lambda: server.elicitations)
        server.reply(city="Rome")
        shown = command.result()
    assert shown.stdout == f"{ROME}\n"
    assert QUESTION in shown.stderr
    assert page(server) in shown.stderr
    (entry,) = logged()
    assert entry["response"] == ROME


def test_question_that_was_answered_is_not_why_an_answer_breaks_off(server):
    with meanwhile(run, *ASK, "[[elicit]] [[die=0]]") as command:
        wait_for(lambda: server.elicitations)
        server.reply(city="Rome")
        shown = command.result()
    assert shown.stdout == "Let me ask.\n"
    assert "broke off its answer" in shown.stderr


@pytest.mark.parametrize("way", [(), ("--async",)], ids=" ".join)
def test_question_that_ends_the_run_is_an_error_with_the_page(server, way):
    run("-m", "hf-llama", "one")
    shown = run("-c", *ASK, *way, "[[elicit_ends]]", status=1)
    assert shown.stdout.startswith("Let me ask.")
    assert len(shown.stderr.splitlines()) <= 2
    assert QUESTION in shown.stderr
    assert page(server) in shown.stderr
    assert server.stops == []
    run("-c", "three")
    assert stored(server)[-2:] == ["three", "You said: three"]
