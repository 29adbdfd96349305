"""Properties as Amoro writes and reads them, and everything that a row may hold instead."""

import json
from time import perf_counter
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dagster_amoro.core.errors import PropertiesError
from dagster_amoro.core.properties import (
    LONGEST_STARTUP,
    dump_properties,
    merge_properties,
    parse_properties,
)

# What a database can store: anything but half a character.
texts: Final = st.text(st.characters(exclude_categories=["Cs"]))
maps: Final = st.dictionaries(texts, texts)
nullable_maps: Final = st.dictionaries(texts, st.none() | texts)


@given(maps)
def test_what_is_dumped_is_parsed_again(properties: dict[str, str]) -> None:
    """Any properties survive the column, in their order."""
    parsed = parse_properties(dump_properties(properties))
    assert list(parsed.items()) == list(properties.items())


@given(nullable_maps)
def test_dumps_what_another_reader_of_json_understands(properties: dict[str, str | None]) -> None:
    """It is a JSON object, compact and never blank."""
    text = dump_properties(properties)
    assert json.loads(text) == properties
    assert text.strip()


JACKSON: Final = {  # what it writes for a character instead of the character itself
    **{chr(code): f"\\u{code:04X}" for code in range(0x20)},
    "\b": r"\b",
    "\t": r"\t",
    "\n": r"\n",
    "\f": r"\f",
    "\r": r"\r",
    '"': r"\"",
    "\\": r"\\",
}


def by_jackson(text: str | None) -> str:
    """A text as AMS's writer has it."""
    if text is None:
        return "null"
    return '"' + "".join(JACKSON.get(character, character) for character in text) + '"'


@given(nullable_maps)
@example({"".join(map(chr, range(0x21))): "\"\\/\x7f\x80\u2028\u2029\U0001f600=&'<>\ufeff"})
@example({r"\u001f": "\\\x1f", "\x1fabc": "abcd\x0b"})
def test_dumps_what_amoro_would_store_to_the_byte(properties: dict[str, str | None]) -> None:
    """Control characters with upper-case digits or their letter; everything else as it is."""
    pairs = (f"{by_jackson(key)}:{by_jackson(value)}" for key, value in properties.items())
    assert dump_properties(properties) == "{" + ",".join(pairs) + "}"


def test_dumps_as_amoro_does() -> None:
    """Compact, in order, with raw characters and slashes."""
    properties = {"b": "ä/\U0001f600=&'<>", "a": 'x"\\\n', "c": None}
    assert dump_properties(properties) == ('{"b":"ä/\U0001f600=&\'<>","a":"x\\"\\\\\\n","c":null}')


def test_no_properties_are_an_empty_object() -> None:
    """NULL and blanks break AMS, so they are never written."""
    assert dump_properties({}) == merge_properties(None, {}) == merge_properties(" ", {}) == "{}"


@pytest.mark.parametrize(
    ("startup", "problem"),
    [
        ({"log": "x" * LONGEST_STARTUP}, "have 16,387 characters; accepted are 16,384"),
        ({"name": "\ud800"}, "hold half a character"),
        ({"\udfff": "name"}, "hold half a character"),
    ],
)
def test_what_no_row_is_to_hold_is_refused(startup: dict[str, str], problem: str) -> None:
    """One character fewer, or the whole one, is taken."""
    with pytest.raises(PropertiesError, match=f"^start-up properties {problem}"):
        merge_properties('{"a":"b"}', startup)
    assert merge_properties("{}", {"log": "x" * (LONGEST_STARTUP - 5), "\0": "\U0001f600"})


@pytest.mark.parametrize("text", [None, "", " ", "\n\t ", "null", " null\n", "{}", " { } "])
def test_a_column_without_properties_is_no_error(text: str | None) -> None:
    """NULL, blanks and the literal null are no properties, as AMS reads them."""
    assert parse_properties(text) == {}


@pytest.mark.parametrize(
    ("literal", "text"),
    [
        ("1", "1"),
        ("-0", "-0"),
        ("1.50", "1.50"),
        ("1.0", "1.0"),
        ("1e3", "1e3"),
        ("1E+03", "1E+03"),
        ("0.1000000000000000055511151231257827", "0.1000000000000000055511151231257827"),
        ("12345678901234567890123", "12345678901234567890123"),
        ("true", "true"),
        ("false", "false"),
        ('"1.50"', "1.50"),
        ('"true"', "true"),
        ('""', ""),
        ('"null"', "null"),
    ],
)
def test_scalars_keep_their_literal_text(literal: str, text: str) -> None:
    """A number is the text that stands there, whatever it would be rounded to."""
    stored = f'{{"k": {literal}}}'
    assert parse_properties(stored) == {"k": text}
    assert merge_properties(stored, {}) == json.dumps({"k": text}, separators=(",", ":"))


@pytest.mark.parametrize(
    ("stored", "properties"),
    [
        ("{a:1}", {"a": "1"}),
        ("{a:1.50,b:01,c:-1e3}", {"a": "1.50", "b": "01", "c": "-1e3"}),
        ("{a:b}", {"a": "b"}),
        ("{true:true,false:FALSE,null:x}", {"true": "true", "false": "false", "null": "x"}),
        ("{a:null,b:NULL,c:nullable,d:xnull}", {"c": "nullable", "d": "xnull"}),
        ("NULL", {}),
        (" { } ", {}),
        ("{flink-conf.x.y-z.size: 1024MB}", {"flink-conf.x.y-z.size": "1024MB"}),
        ('{a : "b: c, {d}" ,\n e : "f"}', {"a": "b: c, {d}", "e": "f"}),
        ("{'a':'b'}", {"a": "b"}),
        ("""{'it\\'s':'"q" \\"q\\" \\\\ \\u00e9'}""", {"it's": '"q" "q" \\ é'}),
        ("{ä_$%@!*+~^|?&()<>`.-:\U0001f600'\"}", {"ä_$%@!*+~^|?&()<>`.-": "\U0001f600'\""}),
        ('{"a":"\\"x: y\\\\",b:"c"}', {"a": '"x: y\\', "b": "c"}),
        ("{a:\"\",'':b}", {"a": "", "": "b"}),
    ],
)
def test_quotes_may_be_missing(stored: str, properties: dict[str, str]) -> None:
    """As AMS reads it; what stands in quotes is not looked into."""
    assert parse_properties(stored) == properties


bare_texts: Final = st.text("abcXYZ019_.-$%ä\U0001f600", min_size=1).filter(
    lambda text: text.lower() not in {"null", "true", "false"}
)


@given(
    st.dictionaries(
        bare_texts, bare_texts | st.just("null").map(json.dumps) | texts.map(json.dumps)
    )
)
def test_bare_names_and_texts_are_what_stands_there(stored: dict[str, str]) -> None:
    """Whatever quoted values stand beside them."""
    expected = {
        key: json.loads(value) if value.startswith('"') else value for key, value in stored.items()
    }
    text = "{" + ", ".join(f"{key}: {value}" for key, value in stored.items()) + "}"
    assert parse_properties(text) == expected


@pytest.mark.parametrize("text", ['{a:"' + r"\"" * 200_000, "{'" * 200_000, "{a:" + '"b' * 200_001])
def test_much_nonsense_is_given_up_soon(text: str) -> None:
    """Each character is looked at a few times at most."""
    start = perf_counter()
    with pytest.raises(PropertiesError):
        parse_properties(text)
    assert perf_counter() - start < 10  # s; hours, if each quote were followed to the end


def test_a_number_of_any_length_keeps_its_text() -> None:
    """Python's limit on the digits of a number does not apply."""
    digits = "9" * 100_000
    assert parse_properties(f'{{"k":{digits},"l":-{digits}.5}}') == {
        "k": digits,
        "l": f"-{digits}.5",
    }


def test_null_values_are_no_properties_but_stay_in_the_row() -> None:
    """A container does not get them; a start does not remove them."""
    stored = '{"a":null,"b":"1","c":null}'
    assert parse_properties(stored) == {"b": "1"}
    assert merge_properties(stored, {"d": "2"}) == '{"a":null,"b":"1","c":null,"d":"2"}'
    assert merge_properties(stored, {"c": "2"}) == '{"a":null,"b":"1","c":"2"}'


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[1]",
        '[{"a":"b"}]',
        '"text"',
        "1",
        "1.5",
        "true",
        "NaN",
        '{"a":',
        '{"a":"b"',
        '{"a":"b",}',
        '{"a":"b"}}',
        '{"a":"b"} x',
        '{"a":"b\n"}',
        '{"a":"\\x"}',
        "{a:1,a:2}",
        "{a:1,'a':2}",
        '{"a":null,a:2}',
        "{a:{b:1}}",
        "{a:[b]}",
        "{a:b c}",
        "{a b:c}",
        "{a:b:c}",
        "{a:b,}",
        "{a:http://host/path}",
        "{a:'b}",
        '{a:"b}',
        '{a:"b\\',
        "{a:'b'c}",
        '{a:"b"c}',
        "{'a':'\\ud800'}",
        "[a]",
        "a",
        "'a'",
        "{a",
        "{a}",
        "{:a}",
        "a=b",
        "\ufeff{}",
        "\0",
        '{"a":{}}',
        '{"a":{"b":"c"}}',
        '{"a":[]}',
        '{"a":["b"]}',
        '{"a":"b","a":"b"}',
        '{"a":"b","a":null}',
        '{"a":null,"a":null}',
        '{"a":"b","\\u0061":"c"}',
        '{"a":{"b":1,"b":2}}',
        '{"a":"\\ud800"}',
        '{"a":"\\uDC00"}',
        '{"\\udfff":"a"}',
        '{"a":"\\ude00\\ud83d"}',
        "[" * 100_000,
        '{"a":' * 100_000,
        "[" * 100_000 + "]" * 100_000,
    ],
    ids=lambda text: repr(text[:20]),
)
def test_what_is_no_object_of_texts_is_an_error_of_the_row(text: str) -> None:
    """It is neither guessed at nor anything but a PropertiesError, whose text can be stored."""
    for read in (parse_properties, lambda text: merge_properties(text, {"k": "v"})):
        with pytest.raises(PropertiesError) as caught:
            read(text)
        message = str(caught.value)
        assert "must be a JSON object of texts" in message
        assert len(message.encode()) < 1000


@given(st.text())
@example('{"a":"\\ud83d\\ude00"}')
@example('{"a":"\\\\ud800"}')
def test_any_text_at_all_is_read_or_is_an_error_of_the_row(text: str) -> None:
    """Nothing else is ever raised."""
    try:
        parsed = parse_properties(text)
    except PropertiesError:
        return
    assert all(isinstance(part, str) for pair in parsed.items() for part in pair)


json_values: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(json_values)
def test_any_json_is_read_or_is_an_error_of_the_row(value: object) -> None:
    """Objects of scalars are read, also with escaped characters; all else is refused."""
    text = json.dumps(value)
    plain = value is None or (
        isinstance(value, dict)
        and not any(isinstance(inner, dict | list) for inner in value.values())
        and _is_storable(value)
    )
    if plain:
        expected = {} if value is None else _texts(json.loads(text, parse_float=str, parse_int=str))
        assert parse_properties(text) == expected
    else:
        with pytest.raises(PropertiesError):
            parse_properties(text)


def _is_storable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(values: dict[str, object]) -> dict[str, str]:
    literal = {True: "true", False: "false", float("inf"): "Infinity", float("-inf"): "-Infinity"}
    return {
        key: value if isinstance(value, str) else literal.get(value, "NaN")  # type: ignore[call-overload]
        for key, value in values.items()
        if value is not None
    }


def test_a_character_in_two_escapes_is_one_character() -> None:
    """Only half of such a pair is an error; an escaped backslash before `ud800` is none at all."""
    assert parse_properties('{"a":"\\ud83d\\uDE00"}') == {"a": "\U0001f600"}
    assert parse_properties('{"a":"C:\\\\ud800"}') == {"a": "C:\\ud800"}


def test_a_megabyte_is_nothing_special() -> None:
    """AMS's column takes 16."""
    properties = {f"key-{number}": "x" * 100 for number in range(10_000)}
    text = dump_properties(properties)
    assert len(text) > 1_000_000
    assert parse_properties(text) == properties
    assert parse_properties(merge_properties(text, {"pid": "1"})) == properties | {"pid": "1"}


def test_a_megabyte_of_nonsense_is_not_repeated_in_its_error() -> None:
    """The error shows where the text begins."""
    with pytest.raises(PropertiesError) as caught:
        parse_properties("x" * 1_000_000)
    assert len(str(caught.value)) < 1000


@given(nullable_maps, maps)
@example({"a": "1", "b": None, "c": "3"}, {"b": "2", "d": "4"})
def test_merging_keeps_old_keys_in_their_place(
    old: dict[str, str | None], startup: dict[str, str]
) -> None:
    """Start-up keys are set where they are, or appended; everything else stays as it was."""
    merged = json.loads(merge_properties(json.dumps(old), startup))
    assert list(merged) == [*old, *(key for key in startup if key not in old)]
    assert merged == {**old, **startup}


@given(nullable_maps, maps)
def test_merging_twice_changes_nothing_more(
    old: dict[str, str | None], startup: dict[str, str]
) -> None:
    """So a save that is repeated because its answer was lost does no harm."""
    once = merge_properties(json.dumps(old), startup)
    assert merge_properties(once, startup) == once


def test_merging_reads_what_sql_wrote() -> None:
    """Upgrade scripts of Amoro reorder keys and put blanks between them."""
    assert merge_properties('{"b": "1", "a": 2}', {"a": "3"}) == '{"b":"1","a":"3"}'
