"""Artifacts: fences in an answer's text, and the versions and files of the web page's panel."""

import pathlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm.utils import extract_fenced_code_block
from markdown_it import MarkdownIt

import llm_huggingchat as plugin
from pure.cuts import CUTS, pieces

CLOCK = """<artifact identifier="clock" type="html" title="A clock">
<!doctype html>
<title>Clock</title>
</artifact>"""
PAGE = "<!doctype html>\n<title>Clock</title>"
LINK = "[f.png](https://chat.example/f)"


def made(identifier: str, content: str, type: str = "html", title: str = "T") -> str:
    return f'<artifact identifier="{identifier}" type="{type}" title="{title}">{content}</artifact>'


def update(identifier: str, *pairs: tuple[str, str]) -> str:
    inside = "".join(f"<old_str>{old}</old_str><new_str>{new}</new_str>" for old, new in pairs)
    return made(identifier, inside, "update", "")


def shown(*texts: str) -> str:
    """What is shown of a text that comes in these pieces."""
    filter = plugin.ArtifactFilter()
    return "".join(map(filter.feed, texts)) + filter.end()


def fences(text: str) -> list[tuple[str, str]]:
    """The fences in Markdown, as a viewer that keeps to CommonMark reads it: word, content."""
    tokens = MarkdownIt("commonmark").parse(text)
    return [(token.info, token.content) for token in tokens if token.type == "fence"]


def latest(*answers: str) -> plugin.ArtifactVersion:
    """The latest version of the only artifact in these answers."""
    (versions,) = plugin.artifacts_of(answers).values()
    return versions[-1]


def names(*texts: str, every: bool = False) -> list[str]:
    return [name for name, _ in plugin.file_names(plugin.artifacts_of(texts), every)]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Here:\n\n", "\n\nThere."),
        ("\n", "  \n"),
        ("> Here: ", "\n> There."),
    ],
)
def test_it_stands_by_itself_whatever_is_around_it(before, after):
    text = shown(f"{before}{CLOCK}{after}")
    assert fences(text) == [("html", PAGE + "\n")]
    assert extract_fenced_code_block(text) == PAGE + "\n"
    artifact = f"**A clock** (`clock`) {plugin.FENCE}html {PAGE} {plugin.FENCE}"
    assert text.split() == f"{before} {artifact} {after}".split()
    assert "\n\n\n" not in text
    assert not text.startswith("\n\n")


@pytest.mark.parametrize(
    ("attributes", "word", "ending"),
    [
        ('type="text/html"', "html", "html"),
        ('type="SVG"', "svg", "svg"),
        ('type="tsx"', "jsx", "jsx"),
        ('type="application/vnd.ant.mermaid"', "mermaid", "mmd"),
        ('type="text/markdown"', "markdown", "md"),
        ('type="application/vnd.ant.code" language="C++"', "cpp", "cpp"),
        ('type="code" language="../a`b"', "ab", "txt"),
        ('type="text/css"', "", "txt"),
        ('type="python"', "python", "py"),
        ("", "", "txt"),
    ],
)
def test_one_word_says_what_it_is_and_its_file_has_an_ending(attributes, word, ending):
    tagged = f'<artifact identifier="a" {attributes}>\nx\n</artifact>'
    assert fences(shown(tagged)) == [(word, "x\n")]
    assert extract_fenced_code_block(shown(tagged)) == "x\n"
    assert names(tagged) == [f"a.{ending}"]


@pytest.mark.parametrize(
    ("tag", "title"),
    [
        ('<artifact type="html">', "**untitled-artifact** (`untitled-artifact`)"),
        ('<ARTIFACT title = "T"\n  Identifier= "a">', "**T** (`a`)"),
        ('<artifact identifier="a`\x1b\n" title="\x1b[31mT\n\nU">', "**[31mT U** (`a'`)"),
    ],
)
def test_its_title_is_one_line(tag, title):
    assert shown(f"{tag}x</artifact>").split("\n")[0] == title


@pytest.mark.parametrize(
    ("inside", "content"),
    [
        ("x", "x\n"),
        ("\n  x\n  ", "  x\n"),
        ("\n\nx\n\n", "\nx\n\n"),
        ("\n<<svg>\n", "<svg>\n"),
        ("<<<!doctype html>", "<!doctype html>\n"),
        ("<< 2", "<< 2\n"),
        ("\n", ""),
    ],
)
def test_line_ends_beside_the_tags_and_doubled_brackets_do_not_count(inside, content):
    text = f'<artifact type="html">{inside}</artifact>'
    assert fences(shown(text)) == [("html", content)]
    assert latest(text).content + ("\n" if content else "") == content


NESTED = "# How to\n```python\nprint()\n```\n````\n```\n````\n~~~\n  ``````````"


def test_a_fence_that_holds_fences_is_not_ended_by_them():
    text = shown(made("a", f"\n{NESTED}\n", "markdown"), "\nDone.\n```py\n1\n```")
    assert fences(text) == [("markdown", NESTED + "\n"), ("py", "1\n")]
    assert extract_fenced_code_block(text) == NESTED + "\n"
    assert extract_fenced_code_block(text, last=True) == "1\n"


PAIRS = "<old_str>a</old_str><new_str>b</new_str>"


@pytest.mark.parametrize(
    ("inside", "lines"),
    [
        (f"<old_str>a\nb</old_str>\n<new_str>c</new_str>\n{PAIRS}", "-a\n-b\n+c\n-a\n+b\n"),
        ("<old_str>a</new_str><new_str>b</old_str>", "-a\n+b\n"),
        ("<<old_str>a<</old_str> <<new_str>b</new_str>", "-a\n+b\n"),
        ("<old_str>```\r~~~</old_str><new_str>b</new_str>", "-```\n-~~~\n+b\n"),
        ("\nthe whole page\n", " the whole page\n"),
        ("<old_str>a</old_str>", " <old_str>a</old_str>\n"),
        ("", ""),
    ],
)
def test_an_update_is_a_diff_of_removed_and_added_lines(inside, lines):
    text = shown(f"Here:\n{made('a', inside, 'update')}\nDone.")
    assert fences(text) == [("diff", lines)]
    assert text.startswith("Here:\n\n**T** (update of `a`)\n\n")


@pytest.mark.parametrize("fence", ["```", "~~~~", "  ```"])
def test_a_fence_that_the_model_put_around_it_is_not_doubled(fence):
    text = shown(f"Here:\n{fence}html\n{CLOCK}\n{fence}\nDone.")
    assert text == f"Here:\n{fence}html\n{PAGE}\n{fence}\nDone."
    assert fences(shown(f"```py\n1\n```\n{CLOCK}"))[1] == ("html", PAGE + "\n")


@pytest.mark.parametrize(
    "text",
    [
        *("<artifacts type='html'>x</artifacts>", "a << b <art> <artifac", "The tag <artifact"),
        *('<artifact identifier="x" type="ht', "<artifact " + "and so on, " * 400 + ">"),
    ],
)
def test_what_only_looks_like_a_tag_comes_through_unchanged(text):
    assert shown(text) == text


def test_it_is_shown_as_it_comes():
    filter = plugin.ArtifactFilter()
    filter.feed(made("a", "").removesuffix("</artifact>"))
    assert filter.feed("one\ntwo") == "one\ntwo"
    assert filter.feed(" three\n") == " three"
    assert filter.feed("``") == "\n``"
    assert filter.feed("<b>") == "<b>"


@pytest.mark.parametrize("rest", ["", "<", "</artifa", "<<</ARTIFACT"])
def test_an_answer_that_breaks_off_inside_an_artifact_ends_its_fence(rest):
    text = shown(CLOCK.removesuffix("\n</artifact>") + rest)
    assert fences(text) == [("html", PAGE + "\n")]
    assert text.endswith(f"\n{plugin.FENCE}")
    broken = latest(CLOCK.removesuffix("\n</artifact>") + rest)
    assert (broken.content, broken.cut) == (PAGE, True)


def test_as_on_the_web_page_an_artifact_ends_where_a_tool_is_called():
    filter = plugin.ArtifactFilter()
    start, end = CLOCK.split("\n<title>")
    assert fences(filter.feed(start) + filter.end()) == [("html", "<!doctype html>\n")]
    # What comes after the tool is text; it begins a paragraph of its own.
    assert filter.feed("<title>" + end) + filter.end() == "\n\n<title>" + end


# --- versions ---


@pytest.mark.parametrize(
    ("content", "old", "new"),
    [
        ("say — “hi”", 'say - "hi"', "N"),
        ("<p>\n    a\n  b</p>", "a b", "<p>\n    N</p>"),
        ("foo bar", "\n  foo\tbar\n", "N"),
        ("<svg x>", "<<svg x>", "N"),
        ("x  y x y", "x y", "x  y N"),
        ("a.b a+b", "a+b", "a.b N"),
    ],
)
def test_an_old_text_need_not_be_quite_the_same(content, old, new):
    assert latest(made("a", content), update("a", (old, "N"))).content == new


def test_a_pair_that_matches_nothing_is_told_and_the_others_count():
    found = latest(made("a", "x"), update("a", ("no", "1"), ("x", "y"), ("", "z")))
    assert (found.content, found.missed) == ("y", ("no", ""))
    found = latest(made("a", "x"), made("a", "<p>new</p>", "update", ""))
    assert (found.content, found.missed, found.title) == ("x", ("",), "T")
    assert plugin.artifacts_of([update("gone", ("a", "b"))]) == {}


def test_an_update_under_another_name_is_of_the_artifact_made_last():
    answers = [made("a", "x"), made("b", "x"), update("c", ("x", "y")), update(" A", ("x", "z"))]
    found = plugin.artifacts_of(answers)
    assert {name: versions[-1].content for name, versions in found.items()} == {"a": "z", "b": "y"}


def test_reasoning_holds_no_artifacts():
    assert plugin.artifacts_of([f"<think>{CLOCK}</think>Hm", f"Then <Think>{CLOCK}"]) == {}


@pytest.mark.parametrize(
    ("identifier", "name"),
    [
        ("../../etc/passwd", "_.._etc_passwd"),
        ("-rf", "rf"),
        ("con .x", "_con .x"),
        ("a\x00\x1b\n\u202eb", "a b"),
        (" ", "untitled-artifact"),
        ("ü" * 300, "ü" * 60),
    ],
)
def test_a_file_name_is_safe(identifier, name):
    assert names(made(identifier, "x")) == [f"{name}.html"]


def test_no_two_files_have_one_name():
    answers = made("a/b", "1"), made("a_b", "2"), made("A_B", "3")
    assert names(*answers) == ["a_b.html", "a_b-2.html", "A_B-3.html"]
    versions = names(CLOCK, update("clock", ("Clock", "Big clock")), every=True)
    assert versions == ["clock.v1.html", "clock.v2.html"]


TAGS = ["<artifact", ' type="html">', ' identifier="a"', "<artifact>", '<artifact type="update">']
ENDS = ["</artifact>", "</ARTIFACT>", "</artifa", '<<artifact id="b">', "<artifacts>", ">"]
INSIDE = ["<old_str>", "</old_str>", "<new_str>", "</new_str>", "<<svg", "a", "é🎉"]
FENCED = ["<", "<<", "```", plugin.FENCE, "```html\n", "\n~~~~ md\n", "```\n"]
SPACES = ["\n", "\n", "\r\n", "\r", " ", "    ", "\t", "\n\n"]
SCRAPS = [st.sampled_from(scraps) for scraps in ([*TAGS, *ENDS, *INSIDE], SPACES, FENCED)]
TAGGED = st.lists(st.one_of(*SCRAPS), max_size=25).map("".join)


@given(TAGGED.filter(lambda text: "artifact" not in text.lower()), st.booleans())
def test_what_is_in_the_fence_is_what_the_panel_has(content, closed):
    end = "</artifact>\nDone." if closed else ""
    text = shown(f'Look:\n<artifact type="markdown">{content}{end}')
    code = extract_fenced_code_block(text) or ""
    panel = latest(f'<artifact type="markdown">{content}{end}').content
    if plugin.FENCE not in content:
        assert code == (panel + "\n" if panel else "")
        ((word, _),) = fences(text)
        assert word == "markdown"


@given(TAGGED, TAGGED)
def test_any_answers_have_artifacts_or_none(one, two):
    file_names = names(one, two, every=True)
    assert len(set(file_names)) == len(file_names)
    assert all(pathlib.PurePath(name).name == name for name in file_names)
    plugin.apply_update(one, two)
    assert plugin.apply_update("a a", "<old_str>a</old_str><new_str>b</new_str>")[0] == "b a"
    place = plugin.find_in(one, two)
    assert place is None or 0 <= place[0] <= place[1] <= len(one)


@given(st.lists(TAGGED, min_size=1, max_size=4), CUTS)
def test_any_cut_shows_the_same_text_also_around_tools(texts, cuts):
    assert shown(*pieces(texts[0], cuts)) == shown(texts[0])
    whole, cut = plugin.ArtifactFilter(), plugin.ArtifactFilter()
    for text in texts:
        one = whole.feed(text) + whole.end() + whole.feed(LINK) + whole.end()
        two = "".join(map(cut.feed, pieces(text, cuts))) + cut.end() + cut.feed(LINK) + cut.end()
        assert one == two
        assert LINK in one
