"""Descriptor files come back as they went, whatever a person or a language model puts in them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import BadInput, Damaged, NoMatch, SecateurError, Unsupported
from secateur.io.descriptors import (
    CHARACTERS,
    WORDS,
    Descriptors,
    clean,
    random_words,
    read_classes,
    read_descriptors,
    write_descriptors,
)

BIRDS = Descriptors(
    ("robin", "crow, big"),
    ("red breast", "thin beak", "black feathers"),
    (0, 0, 1),
    ("by hand", "model at host, 2026-01-02", "by hand"),
)
# whatever one line can hold: every kind of character, white space made single
lines = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).map(lambda s: " ".join(s.split()))


@st.composite
def descriptor_sets(draw: st.DrawFn) -> Descriptors:
    line = lines.filter(bool)
    classes = draw(st.lists(line, min_size=1, max_size=4, unique=True))
    words, owner, sources = [], [], []
    for place in range(len(classes)):
        own = draw(st.lists(line, max_size=4, unique=True))
        words += own
        owner += [place] * len(own)
        sources += [draw(line) for _ in own]
    return Descriptors(tuple(classes), tuple(words), tuple(owner), tuple(sources))


@given(descriptor_sets())
def test_json_gives_back_exactly_what_was_written(tmp_path_factory: pytest.TempPathFactory, d: Descriptors):
    path = tmp_path_factory.mktemp("d") / "d.json"
    assert read_descriptors(write_descriptors(path, d)) == d


@given(descriptor_sets())
def test_text_gives_back_exactly_what_was_written_or_refuses(
    tmp_path_factory: pytest.TempPathFactory, d: Descriptors
):
    path = tmp_path_factory.mktemp("d") / "d.txt"
    if any(part.startswith("//") or " //" in part for part in (*d.classes, *d.words)):
        with pytest.raises(BadInput, match="read as a comment"):
            write_descriptors(path, d)
        assert not path.exists()
    else:
        assert read_descriptors(write_descriptors(path, d)) == d


def test_the_text_form_is_what_a_person_would_write(tmp_path: Path):
    text = write_descriptors(tmp_path / "b.md", BIRDS).read_text()
    assert text == (
        "# robin\n- red breast  // by hand\n- thin beak  // model at host, 2026-01-02\n\n"
        "# crow, big\n- black feathers  // by hand\n"
    )


def test_an_edited_text_file_is_read(tmp_path: Path):
    path = tmp_path / "edited.txt"
    path.write_bytes(
        b"\xef\xbb\xbf// birds\r\n#robin   // my favourite\r\n\r\n  - red   breast // mine\r\n-thin beak\r\n"
        b"- red breast\r\n# wren\r\n"
    )
    d = read_descriptors(path)
    assert d.classes == ("robin", "wren")
    assert d.words == ("red breast", "thin beak"), "a descriptor that is there twice counts once"
    assert d.owner == (0, 0)
    assert d.sources == ("mine", "edited.txt")
    assert d.of(0) == d.words and d.of(1) == ()
    with pytest.raises(BadInput, match=r"^wren: no descriptor; write one, or ask for them$"):
        d.check_complete()
    BIRDS.check_complete()


def test_the_circulating_json_form_is_read(tmp_path: Path):
    path = tmp_path / "d.json"
    path.write_text(
        '{"format": ["a class of this name"], "robin": ["red breast", "red  breast "], "wren": []}'
    )
    d = read_descriptors(path)
    assert d.classes == ("format", "robin", "wren")
    assert d.words == ("a class of this name", "red breast")
    assert d.owner == (0, 1) and d.sources == ("d.json", "d.json")


@pytest.mark.parametrize(
    ("name", "data", "error", "says"),
    [
        ("a.json", b"[1]", BadInput, "no table of classes"),
        ("a.json", b"{}", BadInput, "classes: no class"),
        ("a.json", b'{"a": "red"}', BadInput, "'a' is no list of texts"),
        ("a.json", b'{"a": [1]}', BadInput, "'a' is no list of texts"),
        ("a.json", b'{"a": [""]}', BadInput, "descriptor of 'a': is empty"),
        ("a.json", b'{"a": ["x\\u0000y"]}', BadInput, "control characters"),
        ("a.json", b'{"a": ["x\\ud800y"]}', BadInput, "control characters"),
        ("a.json", b'{"a": ["%s"]}' % (b"x" * 1001), BadInput, "has 1001 characters"),
        ("a.json", b'{"a": [], "a": []}', Damaged, "key 'a' twice"),
        ("a.json", b'{"a": [], "a ": []}', BadInput, "'a' is there twice"),
        ("a.json", b'{"": ["x"]}', BadInput, "class 1: is empty"),
        ("a.json", b'{"a": [', Damaged, "not valid JSON"),
        ("a.json", b'{"a": ["\xff"]}', Damaged, "line 1 is not UTF-8"),
        ("a.json", b"[" * 100_000, Damaged, "not valid JSON"),
        ("a.json", b'{"format": 2, "classes": {}}', Unsupported, "format 2; install a newer"),
        ("a.json", b'{"format": true, "classes": {}}', BadInput, "no number of a format"),
        ("a.json", b'{"format": 0, "classes": {}}', BadInput, "no number of a format"),
        ("a.json", b'{"format": 1, "classes": [], "x": 1}', BadInput, "exactly a format and a table"),
        ("a.json", b'{"format": 1, "classes": {"a": ["x"]}}', BadInput, "no list of texts and sources"),
        ("a.json", b'{"format": 1, "classes": {"a": {"x": 1}}}', BadInput, "no list of texts and sources"),
        ("a.json", b'{"format": 1, "classes": {"a": [{"text": "x"}]}}', BadInput, "no list of texts and"),
        ("a.json", b'{"format": 1, "classes": {"a": [{"text": 1, "source": ""}]}}', BadInput, "that is none"),
        (
            "a.json",
            b'{"format": 1, "classes": {"a": [{"text": "x", "source": ""}]}}',
            BadInput,
            "source of 'x': is",
        ),
        ("a.txt", b"", BadInput, "no class"),
        ("a.txt", b"- x\n", BadInput, "line 1: a descriptor before any class"),
        ("a.txt", b"# a\n- x\nred beak\n", BadInput, "line 3: 'red beak' is none of its lines"),
        ("a.txt", b"## a\n", BadInput, "line 1: '## a' is none of its lines"),
        ("a.txt", b"# a\n# b\n#  a\n", BadInput, "line 3: class 'a' is there twice"),
        ("a.txt", b"#\n- x", BadInput, "class 1: is empty"),
        ("a.txt", b"# a\n- // who\n", BadInput, "descriptor of 'a': is empty"),
        ("a.txt", b"# a\n- x\x00y\n", BadInput, "control characters"),
        ("a.txt", b"# a\n- \xe9\n", Damaged, "line 2 is not UTF-8"),
        ("a.csv", b"a,b", BadInput, "of no form known"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(
    tmp_path: Path, name: str, data: bytes, error: type, says: str
):
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(error) as caught:
        read_descriptors(path)
    assert type(caught.value) is error and says in str(caught.value)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < len(str(path)) + 250


def test_missing_and_huge_files(tmp_path: Path):
    write_descriptors(tmp_path / "birds.json", BIRDS)
    with pytest.raises(NoMatch, match=r"did you mean 'birds\.json'"):
        read_descriptors(tmp_path / "brids.json")
    with pytest.raises(NoMatch, match="no such file"):
        read_descriptors(tmp_path / "nowhere" / "x.json")
    with open(tmp_path / "huge.txt", "wb") as file:
        file.truncate((32 << 20) + 1)
    with pytest.raises(Damaged, match="more than the 33554432"):
        read_descriptors(tmp_path / "huge.txt")
    with pytest.raises(BadInput, match=r"use \.json or \.txt or \.md"):
        write_descriptors(tmp_path / "birds.yml", BIRDS)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": ()}, "no class"),
        ({"classes": ("robin", "robin")}, "'robin' is there twice"),
        ({"classes": ("robin", "")}, "class 2: is empty"),
        ({"classes": ("robin", "a\nb")}, "class 2: 'a\\nb' holds control"),
        ({"owner": (0, 0, 2)}, "no place in the classes"),
        ({"owner": (0, 0, True)}, "no place in the classes"),
        ({"owner": (0, 1, 0)}, "not ascending"),
        ({"owner": (0, 0)}, "3 words, 2 owners, 3 sources"),
        ({"words": ("x", "x", "x")}, "robin: 'x' is there twice"),
        ({"words": ("x", " y", "x")}, "white space besides"),
        ({"words": ("x", 3, "x")}, "3 is no text"),
        ({"sources": ("a", "", "b")}, "source of 'thin beak': is empty"),
    ],
)
def test_descriptors_are_checked_when_they_are_made(change: dict, says: str):
    good = {name: getattr(BIRDS, name) for name in ("classes", "words", "owner", "sources")}
    Descriptors(**{**good, "words": ("x", "y", "x")})  # two classes may share one
    with pytest.raises(BadInput) as caught:
        Descriptors(**{**good, **change})
    assert says in str(caught.value)


def test_class_names_are_read(tmp_path: Path):
    (tmp_path / "c.txt").write_text("// birds\nrobin\n\n  crow,  big // the black one\n#1 fan\n")
    assert read_classes(tmp_path / "c.txt") == ("robin", "crow, big", "#1 fan")
    (tmp_path / "c.json").write_text('["robin", "// crow"]')
    assert read_classes(tmp_path / "c.json") == ("robin", "// crow")
    for name, text, says in [
        ("t.txt", "a\nb\na\n", "'a' is there twice"),
        ("e.txt", "\n// x\n", "no class"),
        ("n.json", '["a", 1]', "no list of names"),
        ("d.json", '{"a": 1}', "no list of names"),
        ("b.json", '["a", ""]', "class 2: is empty"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(BadInput, match=says):
            read_classes(tmp_path / name)
    with pytest.raises(NoMatch):
        read_classes(tmp_path / "none.txt")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("- red breast\n- brown back", ["red breast", "brown back"]),
        ("Sure! Here are some:\n\n1. **Red breast.**\n2) thin beak;\n(3) tail\nHope it helps", [
            "Red breast", "thin beak", "tail",
        ]),
        ("• red\n•blue\n–green\n* *yellow*", ["red", "blue", "green", "yellow"]),
        ("- - red\n- 1. blue", ["red", "blue"]),
        ("red breast\nbrown back\nRED BREAST", ["red breast", "brown back"]),
        ("red breast - black-and-white wing - thin beak", ["red breast", "black-and-white wing", "thin beak"]),
        ("- a tail - often long\n- a beak", ["a tail - often long", "a beak"]),
        ("1. red breast 2. brown back 3. thin beak", ["red breast", "brown back", "thin beak"]),
        ("- 5 - 7 cm long", ["5 - 7 cm long"]),
        ("1.5 metres long\n2.5 kg heavy", ["1.5 metres long", "2.5 kg heavy"]),
        ('["red breast",\n"brown back",\n]', ["red breast", "brown back"]),
        ('- a sign that says "bar"\n- "quoted"', ['a sign that says "bar"', "quoted"]),
        ("- cups, plates, etc.", ["cups, plates, etc."]),
        ("A: Features of a robin:\n- red\n\nQ: What about a wren?\nA:\n- brown", ["red"]),
        ("Q: What of a robin?\nA: red breast", ["red breast"]),
        ("<think>\n- hm\n</think>\n- red", ["red"]),
        ("<think>\n- hm", []),
        ("I'm sorry, but I can't help with that.", []),
        ("Sure!", []),
        ("What do you mean?", []),
        ("- 12\n- ...\n- \n---", []),
        ("", []),
        ("- " + "x " * 17 + "\n- " + "y" * 101 + "\n- sure-footed", ["sure-footed"]),
        ("- tab\there\r\n- nul\x00here\r- half \ud800 pair", ["tab here", "nul here", "half pair"]),
        (["- red", "- blue"], ["red", "blue"]),
        ("\n".join(f"- thing {i}" for i in range(30)), [f"thing {i}" for i in range(12)]),
    ],
)  # fmt: skip
def test_answers_are_cleaned(answer: str | list[str], expected: list[str]):
    assert clean(answer) == expected


@given(st.text() | st.text("-*1. \n:Q?\"'ab•"))
def test_whatever_was_answered_comes_out_fit_for_descriptors(answer: str):
    got = clean(answer)
    Descriptors(("c",), tuple(got), (0,) * len(got), ("s",) * len(got))
    assert len(got) <= 12 and len({word.casefold() for word in got}) == len(got)
    assert all(len(word.split()) <= WORDS and len(word) <= CHARACTERS for word in got)


@given(st.lists(lines.filter(lambda s: s.isalpha()), min_size=1, max_size=12, unique_by=str.casefold))
def test_plain_lists_come_through_whole(words: list[str]):
    words = [word[:CHARACTERS] for word in words if word[:1].casefold() not in "aqs"]
    if len({word.casefold() for word in words}) == len(words):
        assert clean("\n".join(f"- {word}" for word in words)) == words


def test_random_words_keep_counts_and_vocabulary_and_repeat_with_their_seed():
    d = Descriptors(
        ("a", "b", "c"),
        ("red breast, thin", "beak", "long (grey) tail", "beak", "wing of a bird"),
        (0, 0, 1, 2, 2),
        ("x",) * 5,
    )
    one, same, other = random_words(d, 3), random_words(d, 3), random_words(d, 4)
    assert one == same and one.words != other.words and one.words != d.words
    assert one.classes == d.classes and one.owner == d.owner
    assert [len(word.split()) for word in one.words] == [3, 1, 3, 1, 4]
    vocabulary = {"red", "breast", "thin", "beak", "long", "grey", "tail", "wing", "of", "a", "bird"}
    assert {part for word in one.words for part in word.split()} <= vocabulary
    assert set(one.sources) == {"random words, seed 3"}


def test_random_words_follow_the_frequencies():
    classes = tuple(f"c{n}" for n in range(300))
    words = tuple(f"red {'x' * n}" for n in range(1, 301))
    drawn = random_words(Descriptors(classes, words, tuple(range(300)), ("s",) * 300), 0).words
    counts = Counter(part for word in drawn for part in word.split())
    assert counts.total() == 600
    assert 240 < counts["red"] < 360  # half of them; the standard deviation is 12


def test_random_words_of_a_poor_vocabulary_grow_instead_of_repeating():
    d = Descriptors(("a",), ("red", "red red", "red red red", "Red"), (0,) * 4, ("s",) * 4)
    assert len(set(random_words(d, 0).words)) == 4
    lone = Descriptors(("a",), ("x", "x.", "x;"), (0,) * 3, ("s",) * 3)
    assert random_words(lone, 0).words == ("x", "x x", "x x x")
    for seed in (-1, 1 << 32, 1.5, True):
        with pytest.raises(BadInput, match="seed"):
            random_words(d, seed)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="no word to draw"):
        random_words(Descriptors(("a",), ("...",), (0,), ("s",)), 0)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path):
    path = write_descriptors(tmp_path / "d.txt", BIRDS)
    before = path.read_bytes()
    with pytest.raises(SecateurError):
        write_descriptors(path, Descriptors(("a // b",), (), (), ()))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["d.txt"]
    table = json.loads(write_descriptors(tmp_path / "d.json", BIRDS).read_text())
    assert table["classes"]["robin"][1] == {"text": "thin beak", "source": "model at host, 2026-01-02"}
